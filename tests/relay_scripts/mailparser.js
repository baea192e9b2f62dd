// npm's mailparser: reads a JSON list of messages in base64, and writes what it has found in each (hostile_mails.py).
'use strict'

const { simpleParser } = require(`${process.env.OTP_TEST_NODE_MODULES}/mailparser`)
const { readFileSync } = require('fs')

const options = { skipHtmlToText: true, skipImageLinks: true }

async function main() {
  const found = []
  for (const content of JSON.parse(readFileSync(0, 'utf8'))) {
    const mail = await simpleParser(Buffer.from(content, 'base64'), options)
    const [sender] = mail.from.value
    const [to] = mail.to.value
    found.push({
      headers: mail.headerLines.map((it) => it.key),
      sender: [sender.name, sender.address],
      to: [to.name, to.address],
      addresses: mail.from.value.length + mail.to.value.length,
      subject: mail.subject,
      text: mail.text,
      html: mail.html,
      linked: mail.textAsHtml,
      attachments: mail.attachments.length,
    })
  }
  process.stdout.write(JSON.stringify(found))
}

main()

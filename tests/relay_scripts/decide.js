// How a relay replies to a recipient, by the recipient's name: the same rules as `Policy` in relays.py.
'use strict'

const fs = require('node:fs')

const every = Number(process.env.OTP_TEST_REFUSE_SENDER)
const seen = new Set()
let senders = 0

function record(entry) {
  fs.appendFileSync(process.env.OTP_TEST_RECORD, JSON.stringify(entry) + '\n')
}

// rcpt-550-7@example.com is refused at RCPT with 550; a 4xx is given once, then the mail is taken.
exports.decide = (stage, recipient) => {
  const [at, digits] = recipient.split('@')[0].split('-')
  const code = Number(digits)
  if (at !== stage || (code < 500 && seen.has(recipient))) return null
  seen.add(recipient)
  record({ refused: recipient, code })
  return { code, text: `refused at ${stage}` }
}

exports.record = record

// At MAIL the recipient is not known: every so many senders are refused, for now and for good in turn.
exports.refusesSender = () => {
  senders += 1
  if (!every || senders % every) return null
  const code = (senders / every) % 2 ? 450 : 550
  record({ refused: null, code })
  return { code, text: 'refused at mail' }
}

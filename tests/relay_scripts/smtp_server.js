// npm's smtp-server: takes every mail and records it, except where the recipient's name is to be refused (relays.py).
'use strict'

const { SMTPServer } = require(`${process.env.OTP_TEST_NODE_MODULES}/smtp-server`)
const { readFileSync } = require('fs')
const { decide, record, refusesSender } = require(process.env.OTP_TEST_DECIDE)

function answer(verdict, callback) {
  if (!verdict) return callback()
  callback(Object.assign(new Error(verdict.text), { responseCode: verdict.code }))
}

const tokensFile = process.env.OTP_TEST_TOKENS
const login = JSON.parse(process.env.OTP_TEST_LOGIN)
const [cert, key] = JSON.parse(process.env.OTP_TEST_TLS).map((path) => readFileSync(path))

new SMTPServer({
  secure: process.env.OTP_TEST_IMPLICIT !== '',
  ...(cert ? { cert, key } : {}),
  authOptional: !tokensFile && !login,
  allowInsecureAuth: true,
  authMethods: tokensFile ? ['XOAUTH2'] : ['PLAIN', 'LOGIN'],
  disabledCommands: [...(tokensFile || login ? [] : ['AUTH']), ...(cert ? [] : ['STARTTLS'])],
  onAuth(auth, session, callback) {
    if (login) {
      const [user, password] = login
      const right = auth.username === user && auth.password === password
      return callback(right ? null : new Error('wrong password'), right ? { user } : undefined)
    }
    const valid = readFileSync(tokensFile, 'utf8').split(/\s+/)
    if (auth.username === 'otp@example.com' && valid.includes(auth.accessToken)) return callback(null, { user: auth.username })
    record({ refusedToken: auth.accessToken })
    callback(null, { data: { status: '401', schemes: 'bearer mac', scope: 'https://mail.google.com/' } })
  },
  disableReverseLookup: true,
  onMailFrom: (address, session, callback) => answer(refusesSender(), callback),
  onRcptTo: (address, session, callback) => answer(decide('rcpt', address.address), callback),
  onData(stream, session, callback) {
    let size = 0
    stream.on('data', (chunk) => { size += chunk.length })
    stream.on('end', () => {
      const recipients = session.envelope.rcptTo
      const verdict = decide('body', recipients[0].address)
      if (!verdict) record({ recipient: recipients[0].address, recipients: recipients.length, size })
      answer(verdict, callback)
    })
  },
}).listen(Number(process.env.OTP_TEST_PORT), '127.0.0.1')

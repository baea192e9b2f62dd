// A plugin of Haraka: takes every mail and records it, except where the recipient's name is to be refused (relays.py).
'use strict'

const { decide, record, refusesSender } = require(process.env.OTP_TEST_DECIDE)

function answer(next, verdict) {
  if (!verdict) return next(OK)
  next(verdict.code < 500 ? DENYSOFT : DENY, verdict.text)
}

const wantsLogin = JSON.parse(process.env.OTP_TEST_LOGIN) !== null

exports.hook_mail = (next, connection) => {
  if (wantsLogin && !connection.relaying) return next(DENY, 'log in first')
  answer(next, refusesSender())
}

exports.hook_rcpt = (next, connection, params) => answer(next, decide('rcpt', params[0].address))

exports.hook_data = (next, connection) => refuseTransaction(next, connection, 'data')

exports.hook_data_post = (next, connection) => refuseTransaction(next, connection, 'body')

function refuseTransaction(next, connection, stage) {
  const verdict = decide(stage, connection.transaction.rcpt_to[0].address)
  if (!verdict) return next()
  answer(next, verdict)
}

// the second hook is called after a login: without it, Haraka would deliver the mail
exports.hook_queue = exports.hook_queue_outbound = (next, connection) => {
  const { rcpt_to: recipients, data_bytes: size } = connection.transaction
  record({ recipient: recipients[0].address, recipients: recipients.length, size })
  next(OK)
}

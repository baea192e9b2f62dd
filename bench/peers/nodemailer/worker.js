// amqplib and nodemailer with its pool of kept connections: a well-tuned Node worker.
const fs = require('fs')
const path = require('path')
const amqp = require('amqplib')
const nodemailer = require('nodemailer')
const Handlebars = require('handlebars')

const { AMQP_URL, QUEUE, SMTP_PORT, POOL, TEMPLATES } = process.env
const template = (name, options) =>
  Handlebars.compile(fs.readFileSync(path.join(TEMPLATES, name), 'utf8'), options)
const html = template('otp.html')
const text = template('otp.txt', { noEscape: true })
const ADDRESS = /^[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+$/

const mailer = nodemailer.createTransport({
  host: '127.0.0.1', port: Number(SMTP_PORT), secure: false, ignoreTLS: true, name: 'worker',
  pool: true, maxConnections: Number(POOL), maxMessages: Infinity
})

async function main () {
  const connection = await amqp.connect(AMQP_URL)
  const channel = await connection.createChannel()
  await channel.assertQueue(QUEUE, { durable: true })
  await channel.prefetch(2 * Number(POOL))
  await channel.consume(QUEUE, async (message) => {
    try {
      const job = JSON.parse(message.content.toString())
      if (!ADDRESS.test(job.email) || typeof job.otp !== 'string') throw new Error('not a job')
      const given = { otp: job.otp, ...job.metadata }
      await mailer.sendMail({
        from: 'no-reply@example.com', to: job.email, subject: 'Your one-time code', text: text(given), html: html(given)
      })
      channel.ack(message)
    } catch (error) {
      console.error(error.message)
      channel.nack(message, false, false)
    }
  })
}

main()

"""Replies of relays in the field: those about our account, and those about one recipient or message.

Each line is the stage of the dialogue and the reply, with a bar between its lines. Our sender is otp@example.com, our
login smtp@example.org, the recipient user@example.com.
"""

from typing import cast

import pytest

from otp_stream.core.outcome import Deferred, Outcome, Rejected, Stage, Unavailable
from otp_stream.relay.reply import classify, to_reply

LIMITS = """
rcpt 550 5.4.5 Daily user sending limit exceeded. For more information on Gmail sending limits go to https://g.example
body 550 5.4.5 Daily SMTP relay sending limit exceeded for user. Contact your administrator
body 550 5.7.1 Daily SMTP relay limit exceeded for customer
body 554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message
body 554 5.2.0 The message can't be submitted because the sender's submission quota was exceeded
body 550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients
body 550 5.7.705 Access denied, tenant has exceeded threshold
rcpt 550 5.7.508 Access denied, [192.0.2.1] has exceeded permitted limits within 24 hours range
rcpt 451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation
rcpt 550 You have exceeded the limit on the number of allowed outgoing messages
body 554 5.7.0 limit on the number of allowed outgoing messages exceeded
rcpt 550 5.7.0 limit on the number of allowed outgoing messages was exceeded. Try again later.
body 550 Domain example.com has exceeded the max emails per hour (200/200 (100%)) allowed.  Message discarded.
rcpt 550-Domain example.com has exceeded the max defers and failures per hour (5/5 (100%)) allowed.
rcpt 451 Domain example.com has exceeded the max emails per hour (201/200) allowed. Message will be reattempted later
rcpt 550 User <otp@example.com> has exceeded its 24-hour sending limit. Messages to 500 recipients out of 500 sent
rcpt 554 5.7.1 <otp@example.com>: Sender address rejected: sending quota exceeded
rcpt 554 5.7.1 <user@example.com>: Recipient address rejected: Policy Rejection- Quota Exceeded.
rcpt 450 4.7.1 <user@example.com>: Recipient address rejected: You exceeded your quota of 100 messages per hour
rcpt 450 4.7.1 <user@example.com>: Recipient address rejected: sender rate limit exceeded
mail 550 5.7.1 Daily sending quota exceeded
body 550 5.4.6 Unusual sending activity detected. Please try after sometime
body 550 5.4.6 Email sending limit exceeded
body 554 Throttling failure: Daily message quota exceeded.
body 451 Authentication failed: Maximum credits exceeded
body 550 Maximum credits exceeded
body 451 You have exceeded your messaging limits
body 550 5.7.1 Monthly quota exceeded
body 550 over monthly quota
body 550 5.7.0 Your plan limit has been reached
body 452 4.5.0 Not enough credits
body 420 4.7.0 Exceed Sending Limit (daily)
rcpt 421 Domain mg.example.com is not allowed to send: hourly recipient limit exceeded
data 421 Domain mg.example.com is not allowed to send: recipient limit exceeded, try again after Sun, 05 Oct 2025
body 421 Domain mg.example.com is not allowed to send: too many messages
body 554 5.2.0 STOREDRV.Submission.Exception:QuotaExceededException.MapiExceptionQuotaExceeded; Failed to process
rcpt 550 Sender frequency limited
rcpt 550 Domain frequency limited
rcpt 550 Ip frequency limited
mail 550 Connection frequency limited
rcpt 452 Too many recipients received this hour
body 554 MI:SFQ otp,smtp1 0 http://mail.example/help
rcpt 553 MI:STC otp
rcpt 451 RP:QRC 192.0.2.1
body 550 5.7.1 Sorry, your email sending rate exceeded
body 550 Message limit reached
rcpt 550 5.7.1 You've exceeded your quota
rcpt 550 5.7.1 Outgoing message limit reached for today
rcpt 550 Too many messages sent today
body 550 5.7.1 Too many messages from your account, slow down
body 550 5.7.1 Rate limit exceeded
body 550 Rate limit reached, try again in 3600 seconds
rcpt 552 5.7.0 outbound relay limit exceeded
rcpt 550 <otp@example.com> has exceeded the outbound relay limit
rcpt 554 Your SMTP relays exceeded the limit for today
rcpt 421 4.7.0 You have reached your quota of sent mails
rcpt 450 4.7.1 message rate exceeded
rcpt 451 4.7.1 quota exceeded, try again later
rcpt 450 4.7.1 Recipient limit per hour reached
rcpt 451 4.7.0 Too many emails per day
body 550-5.7.1 Our system has detected an unusual rate of unsolicited mail originating from your IP address.
body 554 5.7.1 Hourly sending limit of 300 reached
data 550 5.7.1 You have sent too many messages in the last hour
body 451 4.7.1 Ratelimit "user" exceeded
rcpt 550 Too many messages. Try again in 92 seconds.
rcpt 554 5.7.1 <user@example.com>: Recipient address rejected: You have exceeded your Outmail quota.
body 451 4.3.0 Too many outstanding messages
body 450 Too many requests
rcpt 450 Requested action not taken: You have sent more mail than allowed
rcpt 550 User <login@example.net> has exceeded its 24-hour sending limit
body 450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.
rcpt 550 Daily sending limit for login@example.net exceeded
rcpt 450 4.7.1 rate limit exceeded for user account login@example.net
mail 552 quota exceeded
mail 552 You are over quota
mail 552 Mailbox quota exceeded
mail 552 Too many mails
mail 552 Mailbox size limit exceeded
mail 552 Account storage quota exceeded
mail 552 Daily size limit exceeded
mail 452 4.2.2 over quota
rcpt 550 Hourly limits exceeded
body 550 Monthly limits reached
body 550 Daily quotas exceeded
rcpt 550 Weekly caps reached
body 550 Daily thresholds exceeded
rcpt 550 Daily limitation reached
rcpt 550 Daily maximum exceeded
rcpt 550 Yearly quota exceeded
rcpt 550 24h quota exceeded
data 550 Message limits reached
body 550 Outgoing quotas exceeded
rcpt 550 Quotas for sender reached
rcpt 550 Limits exceeded for today
rcpt 451 quotas per hour reached
rcpt 550 Your allowances are used up
rcpt 550 5.7.1 Quotas exceeded
rcpt 550 otp@example.com has exceeded its quota
rcpt 550 Quota exceeded for sender otp@example.com
rcpt 550 Quota exceeded for otp@example.com
rcpt 550 Over quota (otp@example.com)
rcpt 552 OTP@Example.com is over quota
rcpt 450 4.7.1 <otp@example.com>: more than 50 messages per hour
rcpt 550 Mailbox otp@example.com has exceeded the daily limit
rcpt 550 <otp@example.com>: mailbox has exceeded the daily limit
rcpt 550 Mailbox has exceeded the daily sending limit
rcpt 550 <login@example.net>: daily sending limit exceeded
rcpt 450 <smtp@example.org>: hourly limit exceeded
rcpt 550 smtp@example.org is over quota
"""

SENDER_REFUSED = """
mail 553 5.7.1 <otp@example.com>: Sender address rejected: not owned by user otp
rcpt 553 5.7.1 <otp@example.com>: Sender address rejected: not owned by auth user.
rcpt 550 5.1.8 <otp@example.com>: Sender address rejected: Domain not found
rcpt 450 4.1.8 <otp@example.com>: Sender address rejected: Domain not found
rcpt 550 5.1.8 Access denied, bad outbound sender AS(42004)
mail 501 5.1.7 Bad sender address syntax
mail 550 5.7.1 sender refused
mail 550 no
mail 554 5.7.1 Access denied
mail 553 5.1.3 Invalid address
mail 550 5.1.1 User unknown
mail 501 Mail from address must be same as authorization user
mail 553 Mail from must equal authorized user
mail 571 Delivery not authorized, message refused
mail 500 5.5.2 what?
rcpt 550 Sender verify failed
rcpt 550-Verification failed for <otp@example.com>
rcpt 550 Sender rejected
rcpt 550 5.7.1 Sender is not allowed
rcpt 553 Sender is not allowed to relay emails
body 553 Relaying disallowed as otp@example.com
body 550 5.7.60 SMTP; Client does not have permissions to send as this sender
body 554 5.2.252 SendAsDenied; a@example.com not allowed to send as otp@example.com; STOREDRV.Submission.Exception
body 554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message
body 550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.
body 554 Message rejected: Email address is not verified. The following identities failed the check: otp@example.com
body 554 Message rejected: Email address is not verified.
body 554 Message rejected: Email address is not verified. The following identities failed the check: example.com
body 554 Message rejected: Account is paused
body 554 Message rejected: Your account is paused.
body 554 Configuration set `otp' does not exist
body 554 Transaction failed: Configuration set does not exist
body 554 Access denied: User `arn:aws:iam::1:user/otp' is not authorized to perform `ses:SendRawEmail' on resource x
body 554 Message rejected: Sending paused for this account.
body 550 5.7.0 From address is not one of your addresses
body 551 5.7.1 Not authorised to send from this header address
body 550 5.7.1 Unconfigured Sending Domain <example.com>
rcpt 550 Domain mg.example.com is not allowed to send: The domain is unverified and requires DNS configuration
data 421 Domain mg.example.com is not allowed to send: Sandbox subdomains are for test purposes only.
body 554 Sandbox subdomains are for test purposes only. Please add your own domain or add the address to authorized
body 550 Free accounts are for test purposes only. Please upgrade or add the address to authorized recipients
rcpt 550 5.7.1 Your account has been suspended
rcpt 550 5.7.0 Mail rejected: your account is locked due to spam
rcpt 550 Outgoing mail from "otp" has been suspended.
body 554 5.1.8 Email Outgoing Blocked
rcpt 550 Account otp cannot send emails right now
body 550 5.7.0 Please activate your smtp account
rcpt 550 5.7.64 TenantAttribution; Relay Access Denied
rcpt 554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org
rcpt 554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied
rcpt 450 4.7.1 Client host rejected: cannot find your reverse hostname, [192.0.2.1]
rcpt 450 4.7.1 Client host rejected: cannot find your hostname, [192.0.2.1]
rcpt 550 5.7.25 The IP address sending this message does not have a PTR record
rcpt 450 4.7.25 Client host rejected
rcpt 450 4.7.1 reverse DNS lookup failed
rcpt 451 4.7.1 your IP has no rDNS
rcpt 450 4.7.1 <localhost>: Helo command rejected: Host not found
rcpt 504 5.5.2 <otp>: Helo command rejected: need fully-qualified hostname
rcpt 550 5.7.1 Your IP 192.0.2.1 is blacklisted
rcpt 550 5.7.606 Access denied, banned sending IP [192.0.2.1]
body 422 The 'From' address you supplied (otp@example.com) is not a Sender Signature on your account.
body 550 While your account is pending approval, all recipient addresses must share the same domain as the 'From'
body 413 Account may not send
body 550 5.7.1 The sender address otp@example.com is not a confirmed Sender Signature
rcpt 550 5.7.1 Sender otp@example.com not registered
rcpt 550 relay not permitted for otp@example.com
body 550 5.7.1 Domain example.com not allowed as sender
body 554 5.7.1 Message rejected: your sending privileges have been suspended
body 550 5.7.0 SMTP access is disabled for this account
body 554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Failed to process message
body 550 5.7.703 Your message can't be delivered because messages were sent without authentication
rcpt 550 Account outbounds disabled
rcpt 550 Domain mg.example.com is not allowed to send: unverified. See the SPF and DKIM records for validation
body 550 5.7.1 Sender domain not verified: SPF and DKIM checks have to pass first
body 550 5.7.1 Sending disabled: your domain fails SPF validation
rcpt 554 5.7.1 <unknown[192.0.2.1]>: Relay access denied
rcpt 554 5.7.1 <mail.example.com[192.0.2.1]>: Relay access denied
rcpt 553 Relaying disallowed
rcpt 550 5.7.1 Relaying denied
body 553 Relaying disallowed. Invalid Domain - example.com
rcpt 550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your provider (S3150).
rcpt 550-5.7.1 [192.0.2.1] The IP you're using to send mail is not authorized to send email directly to our servers.
rcpt 554 Your access to this mail system has been rejected due to the sending MTA's poor reputation.
rcpt 553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list
rcpt 550 5.7.1 IP 192.0.2.1 is not whitelisted
rcpt 550 Your IP address is not on the allow list
body 550 5.7.1 IP address 192.0.2.1 not in whitelist for this account
rcpt 550-Requested action not taken: mailbox unavailable | Sender address is not allowed.
body 550 5.7.1 API key disabled
rcpt 550 The API key is invalid
rcpt 550 Domain not found for sender
rcpt 550 Sender domain has no MX record
rcpt 553 Domain of sender address otp@example.com does not resolve
rcpt 550-Verification failed for <otp@example.com> | Response: 452 mailbox full | Sender verify failed
rcpt 550-Callback setup failed for <otp@example.com> | Response: 550 The mailbox is full | Sender verify failed
rcpt 550 5.7.1 Your SMTP account has been disabled
body 554 5.7.1 The account has been suspended from sending
rcpt 550 Access from this IP is denied
rcpt 550 5.7.1 Client IP 192.0.2.1 is blocked
body 550 5.7.1 your account is disabled
rcpt 550 Mail from your network is blocked
rcpt 554 5.7.0 Your server IP address is in the SORBS DNSBL database, bye
body 554-Transaction failed | IP address is black listed.
rcpt 550 Local CT IP Reputation policy - https://community.example.com/docs/DOC-1369#550
rcpt 550 5.7.1 <user@example.com>... Relaying denied. IP name lookup failed [192.0.2.1]
rcpt 550 5.7.0 Blocked - see https://support.example.com/dnsbl-lookup.cgi?ip=192.0.2.1
body 554 Blocked - see https://ipcheck.example.com/?ip=192.0.2.1
rcpt 550 JunkMail rejected - mail.example.com [192.0.2.1]:4711 is in an RBL on zen.spamhaus.org
rcpt 550 Service unavailable; client [192.0.2.1] blocked using Barracuda Reputation
rcpt 550 #5.7.1 Your access to submit messages to this e-mail system has been rejected.
mail 552 denied
mail 552 Account disabled
rcpt 550 <otp@example.com> is not a valid sender
rcpt 550 otp@example.com is blocked
body 550 OTP@Example.com is blocked
rcpt 450 otp@example.com is blocked for now
rcpt 550 5.7.1 <otp@example.com> blocked
rcpt 550 5.1.1 <otp@example.com>: User unknown
rcpt 550 <otp@example.com>: no such user
rcpt 550 Unknown user: otp@example.com
rcpt 553 5.1.3 otp@example.com: malformed address
rcpt 550 You may not use otp@example.com
rcpt 550 mail from otp@example.com is refused
rcpt 550 Account otp@example.com suspended
rcpt 550 5.2.1 Mailbox otp@example.com disabled
body 554 otp@example.com: Access denied
rcpt 550 5.7.1 Sender not yet known
rcpt 450 4.7.1 Sender not yet verified
rcpt 451 temporary block of your IP
rcpt 550 5.7.1 Your IP is blocked, see URL https://relay.example/help
body 550 5.7.1 client blocked by reverse DNS blacklist
body 550 5.7.1 Your IP is listed in the example DNSBL, follow the link to remove it
rcpt 550 smtp@example.org is blocked
rcpt 550 5.2.1 <smtp@example.org>: account disabled
rcpt 550 blocked (from=otp@example.com)
rcpt 450 4.7.1 <otp@example.com> blocked, please try again later
rcpt 504 5.5.2 HELO must contain a valid domain, helo not accepted
"""

LOGIN_REFUSED = """
mail 530 5.7.0 Authentication Required
rcpt 530 5.7.1 Client was not authenticated
data 530 5.7.0 login
body 530 5.7.57 Client not authenticated to send mail
body 535 5.7.139 Authentication unsuccessful
rcpt 535 Login Fail. Please enter your authorization code to login.
mail 538 5.7.11 Encryption required for requested authentication mechanism
mail 534 5.7.9 Application-specific password required
body 550 5.7.30 Basic authentication is not supported for Client Submission.
mail 550 5.7.30 Basic authentication is not supported
mail 503 Error: need EHLO and AUTH first !
mail 503 5.5.4 Error: send AUTH command first
mail 550 5.7.1 Authentication required
rcpt 550 relay not permitted, authentication required
rcpt 553 Authentication is required to send mail
mail 502 5.7.0 Please authenticate first
rcpt 550 5.7.1 must be authenticated
mail 451 4.7.0 authentication required
rcpt 553 5.7.1 <otp@example.com>: Sender address rejected: not logged in
mail 550 Unauthenticated senders not allowed
rcpt 550 5.7.1 Invalid credentials for relay [192.0.2.1]. The IP address is not registered
rcpt 550 SMTP AUTH is required for message submission on port 587
rcpt 550 You must log in to send mail
rcpt 550 5.7.1 Authentication failed
rcpt 454 Authentication failed
rcpt 550 Authentication unsuccessful
body 550 5.7.0 SMTP authentication failure
rcpt 550 SMTP authentication is mandatory
rcpt 553 SMTP-AUTH required
rcpt 550 You have to authenticate
rcpt 550 authentication must be enabled
rcpt 550 Please log in before sending
rcpt 550 You need to be logged in
rcpt 550 Please sign in first
rcpt 550 Log on to your account to send mail
rcpt 550 Login required
body 550 Login failed
body 550 Invalid login
rcpt 550 Invalid username or password
rcpt 550 Wrong password
rcpt 550 5.7.1 Your IP address requires authentication
rcpt 550 Mail from this address requires authentication
"""

UNREACHABLE = """
mail 451 4.3.0 Temporary lookup failure
mail 450 4.2.0 come back later
mail 451 Requested action aborted: local error in processing
mail 421 4.3.0 Service not available
"""

SOME_TROUBLE = """
rcpt 550 5.7.0 Your message was not sent because you have reached your hourly limit of 100 emails
body 554 5.7.0 You have reached the maximum number of messages allowed per day
body 550 5.2.0 Submission quota exceeded
rcpt 550 5.2.0 Sender has exceeded the hourly message limit
rcpt 554 5.7.1 Too many mails sent within the last hour (max 100/h)
rcpt 550 Message rejected: number of messages sent today exceeds the allowed quota
body 550 Sending quota exceeded
rcpt 550 Sender quota exceeded
body 550 5.7.0 Account quota for outgoing mail exceeded
body 554 5.7.1 Your daily sending limit has been exceeded
body 550 Daily message limit exceeded
body 550 Hourly email limit exceeded for this account
body 550 5.7.1 Email quota exceeded for this hour
rcpt 550 You have exceeded the max emails per hour
rcpt 554 Too many mails in the last 24 hours from you
body 550 The limit on the number of outgoing messages per day is reached
body 554 5.7.1 You exceeded your message quota
body 451 4.7.1 Sending limit reached, please try later
rcpt 450 4.7.0 Quota of messages per minute exceeded
rcpt 450 4.7.1 rate limited
rcpt 451 4.7.1 Client exceeded connection rate
rcpt 450 4.7.1 Too many recipients, slow down
rcpt 451 4.7.0 excessive message rate from sender
rcpt 450 4.7.1 Host exceeded its limit
rcpt 450 4.7.1 IP address has no reverse DNS entry
rcpt 450 4.7.1 Cannot resolve PTR record for 192.0.2.1
rcpt 450 4.7.1 Fix reverse DNS for 192.0.2.1
rcpt 451 4.7.1 unable to verify reverse DNS
rcpt 450 4.7.1 Your host has no valid hostname in DNS
rcpt 550 5.7.1 Sender not owned
rcpt 553 5.7.1 Sender address not owned by user otp@example.com
rcpt 550 You are not permitted to use this sender address
rcpt 550 5.7.1 Sender address is not verified
body 550 Sender email is not verified
body 550 The sender domain is not verified
body 550 5.7.1 From domain example.com is not authorized for this account
rcpt 550 5.7.1 Client was not authorised to send as otp@example.com
rcpt 550 5.7.1 You must verify your sender address
body 550 5.7.1 Sender identity not verified
body 554 5.7.1 Sender access denied
body 550 SMTP account disabled
body 550 5.7.0 Account is temporarily suspended from sending
body 550 5.7.1 Your subscription has expired
body 550 5.7.1 Sending disabled
rcpt 550 Sending from this account has been blocked
body 550 5.7.1 Your account has exceeded its daily quota of messages
rcpt 550 5.7.1 limit of messages per account per day exceeded
body 550 mail quota exceeded for today
body 550 5.7.1 The user has exceeded the sending limit
rcpt 550 5.7.1 SMTP sending limit for your mailbox has been reached
rcpt 550 5.7.1 Your mailbox has exceeded the number of messages allowed per hour
body 550 5.3.2 message quota for this sender is exhausted
rcpt 450 4.5.3 You sent too many recipients
rcpt 452 4.7.1 message quota exhausted
body 454 4.7.0 Daily quota used up
mail 452 4.2.2 over quota
mail 552 5.2.2 Your mailbox is full, sending is not possible
rcpt 550 5.7.1 Monthly allowance used up
body 550 Send limit exceeded
rcpt 550 smtp limit exceeded
body 550 Exceeded maximum number of messages per hour
body 550 Exceeded sending limit of 500
body 554 5.7.1 [P4] Message blocked due to the sender's daily quota
rcpt 554 5.7.0 Reject: you reached the daily limit of your mailing account
rcpt 550 5.7.1 Sorry, you have reached the maximum amount of outgoing emails for today
body 550 5.7.1 Limit of sent messages is exceeded
body 554 5.4.5 quota exceeded
body 550 5.7.0 Over quota for outbound messages
rcpt 550 5.7.1 Too many messages in a short time
body 550 Too many emails
rcpt 550 too many recipients in the last hour
rcpt 550 5.7.1 Recipients per day limit exceeded
rcpt 451 4.7.1 Access denied: message rate too high
rcpt 451 4.7.1 sending too fast
body 450 4.7.1 please slow down, limit of 60 messages per minute
rcpt 550 5.7.1 Message volume limit exceeded
rcpt 550 5.7.1 Sending rate limit exceeded for account
body 550 message submission limit exceeded
rcpt 550 exceeded number of allowed emails per hour for domain example.com
rcpt 550 5.1.90 recipient limit
rcpt 450 4.7.1 hourly quota exceeded for sasl user otp
rcpt 550 5.7.1 <otp@example.com>: Sender address rejected: Access denied
rcpt 550 Sender not allowed
rcpt 550 Invalid sender
rcpt 550 Sender unknown
rcpt 450 4.7.1 Sender address rejected: undeliverable address
rcpt 550 5.1.0 <otp@example.com> sender rejected. OVH
rcpt 550 5.7.1 Unauthorized sender address
body 550 5.7.1 The sender address does not belong to your account
body 553 5.7.1 Sender mismatch
body 550 5.7.1 From address not authorised for this user
rcpt 550 5.7.1 this user is not allowed to use otp@example.com as sender
rcpt 550 5.7.1 Relaying not allowed: From domain not verified
body 550 You must use a verified sender
body 550 5.7.1 Message rejected: From address is not verified
body 550 5.7.0 domain not verified
body 550 5.7.1 Your domain is not verified
rcpt 550 5.7.1 Your account is not active
rcpt 550 5.7.1 Your account was blocked
rcpt 550 5.7.1 account suspended due to abuse
rcpt 450 4.7.1 Client host rejected: cannot find your reverse hostname
rcpt 450 4.7.25 no PTR
rcpt 450 4.7.1 The reverse DNS of your server is missing
rcpt 550 5.7.1 No reverse DNS for your IP
body 550 5.7.0 Authentication required
body 550 5.7.1 Client is not authenticated
rcpt 550 5.7.3 Not authenticated
rcpt 554 5.7.1 Relay access denied: authentication required
mail 451 4.7.1 Greylisted
mail 554 5.7.1 spam
mail 550 5.2.2 mailbox full
mail 501 5.5.4 syntax
mail 452 4.3.1 Insufficient system storage
mail 552 5.7.0 quota exceeded
mail 552 daily quota exceeded
mail 550 5.5.0 who are you
mail 455 4.5.4 cannot accommodate parameters
mail 450 4.7.1 too busy
mail 503 5.7.0 Access denied. Authentication required
body 451 4.3.0 Error: queue file write error
body 451 4.3.0 queue file write error
rcpt 451 4.3.5 Server configuration problem
rcpt 451 4.3.5 Server configuration error
body 451 4.3.5 Server configuration problem
rcpt 451 4.3.0 Temporary service failure
body 451 4.3.0 Internal server error
body 452 Requested action not taken: insufficient system storage
rcpt 452 Insufficient system storage
body 452 insufficient disk space, try again
body 451 4.3.0 Temporary system problem. Try again later
body 451 4.3.0 Temporary server error. Please try again later. PRX2
body 451 4.3.2 Please try again later
body 451 qq temporary problem (#4.3.0)
body 451 qq trouble creating files in queue (#4.3.0)
body 451 qq write error or disk full (#4.3.0)
body 451 unable to exec qq (#4.3.0)
rcpt 452 #4.3.1 temporary system resource error
rcpt 530 5.7.1 Authentication is needed by this destination
rcpt 535 5.7.8 Authentication failed: account is on our suppression list
"""

RECIPIENTS_OWN = """
rcpt 452 4.2.2 The email account that you tried to reach is over quota
rcpt 552 5.2.2 The email account that you tried to reach is over quota. Please direct the recipient to x
rcpt 552-5.2.2 The recipient's inbox is out of storage space and inactive.
rcpt 552 5.2.2 Mailbox full
rcpt 552 5.2.2 <user@example.com>: user is over quota
rcpt 552 Mailbox quota exceeded
rcpt 452 Mailbox quota exceeded
rcpt 550 Quota exceeded
rcpt 552 Quota exceeded
body 552 Requested mail action aborted: exceeded storage allocation
rcpt 550 5.7.1 Mailbox is over quota
rcpt 554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded
rcpt 550 <user@example.com> has exceeded the storage limit
rcpt 552 5.2.2 This message is larger than the current system limit or the recipient's mailbox is full
rcpt 422 4.2.2 recipient's mailbox has exceeded its limit
rcpt 550 User has exceeded quota
rcpt 450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages
rcpt 550-5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages
rcpt 450 4.2.1 The user you are trying to contact is receiving mail too quickly
rcpt 421 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages
rcpt 451 4.5.1 The recipient <user@example.com> has exceeded their message rate limit. Try again later.
rcpt 451 4.7.1 The recipient has exceeded their message rate limit
rcpt 550 5.7.1 recipient has exceeded the daily limit of received messages
rcpt 450 4.7.1 Too many messages to this recipient, rate limited
rcpt 450 4.7.1 You have exceeded the number of messages per hour for this recipient
rcpt 450 4.2.1 mailbox has a message rate limit
rcpt 450 4.7.1 <user@example.com>: Recipient address rejected: Greylisted, see http://x
rcpt 451 4.7.1 Greylisting in action, please come back later
rcpt 450 4.7.1 Graylisted, message rate limit for new senders
rcpt 451 4.7.1 greylisted, try again in 5 minutes per 24 hours limit
rcpt 450 4.2.0 <user@example.com>: Recipient address rejected: Greylisted
rcpt 550 5.1.1 <user@example.com>: Recipient address rejected: User unknown in local recipient table
rcpt 550 5.1.1 The email account that you tried to reach does not exist
rcpt 550 5.2.1 The email account that you tried to reach is disabled
rcpt 550 5.1.1 No such user here
rcpt 550 User suspended
rcpt 554 delivery error: dd This account has been disabled or discontinued
rcpt 550 5.1.1 Mailbox unavailable
rcpt 550 Mailbox unavailable or access denied
rcpt 550 5.1.0 Address rejected.
rcpt 553 sorry, that domain isn't in my list of allowed rcpthosts
rcpt 554 5.7.1 <user@example.com>: Relay access denied
rcpt 454 4.7.1 <user@example.com>: Relay access denied
rcpt 550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain
rcpt 550 5.4.1 Recipient address rejected: Access denied
rcpt 550 5.7.124 Sender not in allowed-senders list
rcpt 550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; sender not authenticated for group
rcpt 550 5.7.134 sender not authenticated for mailbox
rcpt 550 5.7.1 RESOLVER.RST.AuthRequired; authentication required
rcpt 550 5.7.1 RESOLVER.RST.NotAuthorized; not authorized
rcpt 550 5.7.1 You are not allowed to send mail to this group
rcpt 550 5.7.1 You do not have permission to send to this recipient
rcpt 550 5.7.1 Sender blocked by the recipient
rcpt 550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked by recipient using customer block list
rcpt 451 Temporary local problem - please try later
rcpt 450 4.1.1 <user@example.com>: Recipient address rejected: unverified address: Address verification in progress
rcpt 450 4.4.1 connection timed out
rcpt 550 5.1.2 Host unknown
rcpt 550 5.7.1 Unrouteable address
body 550 5.7.1 Message rejected as spam by Content Filtering.
body 554 5.7.1 Spam message rejected
body 554 5.7.1 [2] Message rejected under suspicion of SPAM; https://x
body 550 5.7.1 This message is likely unsolicited mail. To reduce the amount of spam sent to x, it has been blocked.
body 550 5.7.1 [192.0.2.1 12] Our system has detected that this message is likely unsolicited mail.
body 552 5.7.0 Our system detected an illegal attachment on your message.
body 554 5.7.1 Message blocked: spam score limit exceeded
body 554 5.7.1 message contains a URL listed at dbl.spamhaus.org
body 450 4.7.1 spam score exceeds the limit
body 554 5.6.0 Message contains invalid header
body 550 5.7.26 This mail is unauthenticated
body 550 5.7.1 Gmail requires authentication of all senders by SPF or DKIM
body 554 5.4.6 Too many hops
body 552 5.3.4 Message size exceeds fixed limit
body 552 5.3.4 Your message exceeds the size limit
body 552 5.2.3 Message exceeds maximum fixed size
body 550 Mail content denied
body 554 DT:SPM otp,smtp1
body 554 Message rejected: Email address is not verified. The following identities failed the check: user@example.com
body 550 5.7.1 Mail from <otp@example.com> to <user@example.com> was rejected by the content filter
body 554 5.7.1 Transaction failed: reject due to policy restrictions
body 554 5.7.1 virus found, message rejected
mail 552 5.3.4 Message size exceeds fixed limit
mail 552 Message size exceeds maximum
mail 550 5.6.7 SMTPUTF8 required
mail 555 5.6.7 UTF-8 address not supported
mail 555 unsupported option SMTPUTF8
mail 554 5.6.3 8BITMIME conversion not supported
rcpt 552 5.2.2 Account over quota
rcpt 552 user quota exceeded
rcpt 550 5.2.2 over quota
rcpt 552 5.7.0 mailbox quota exceeded
rcpt 554 5.2.2 <user@example.com>: Recipient address rejected: Quota exceeded (mailbox for user is full)
rcpt 452 4.2.2 <user@example.com>: Mailbox size limit exceeded
rcpt 450 4.7.1 the recipient's mailbox is over its daily limit
rcpt 550 5.2.1 Mailbox disabled, not accepting messages
rcpt 450 4.2.1 Recipient is receiving too many messages right now
rcpt 450 4.2.1 user is over rate limit
rcpt 450 4.2.1 <user@example.com>: rate limit exceeded for this recipient
rcpt 550 5.2.1 Recipient rate limit exceeded
rcpt 451 4.7.1 Please try again later (greylisting)
rcpt 451 4.7.1 Temporarily rejected. Try again in 300 seconds. Greylisted
rcpt 450 4.7.1 Greylisting enabled, try again in 5 minutes
rcpt 450 4.7.0 Please retry in 60 seconds
rcpt 451 4.7.1 Please try again later
rcpt 450 4.7.1 try again later
rcpt 550 5.1.1 User unknown
rcpt 550 5.1.6 Recipient has moved
rcpt 551 5.7.1 User not local
rcpt 550 5.7.1 Recipient not authorized to receive from outside
rcpt 550 5.7.1 The recipient does not accept mail from you
rcpt 550 5.1.10 RESOLVER.ADR.RecipientNotFound
rcpt 550 Account disabled
rcpt 550 5.2.1 The user's account is suspended
rcpt 554 5.7.1 The user or domain that you are sending to (or from) has a policy that prohibited the mail that you sent
body 554 5.7.1 This message has been blocked because it contains a banned attachment
body 550 5.7.1 Message content rejected
body 550 High probability of spam
body 554 5.7.0 Reject, id=1 - SPAM
body 550 5.7.1 Blocked by spam filter
body 550 5.7.1 Message failed DMARC policy of example.com
body 550 5.7.23 SPF validation failed
body 451 4.7.1 content check failed, try again
body 552 message too large
body 550 5.7.1 Too many links in your message
body 554 5.7.1 Too many invalid characters in message
rcpt 550 5.7.1 <user@example.com>: Recipient address rejected: Access denied
rcpt 550 5.2.0 Mailbox has exceeded the maximum number of messages
rcpt 552 5.2.2 user's disk quota exceeded
rcpt 452 4.2.2 user over quota: 1000000 of 1000000 bytes used
rcpt 552 5.2.2 The user you are trying to contact is over their hourly quota
rcpt 550 5.7.1 User has exceeded the number of messages they can receive per hour
rcpt 450 4.2.1 This user has exceeded the maximum number of messages per hour
rcpt 450 4.3.2 mailbox is busy, too many concurrent deliveries
body 550 5.7.1 Your message was identified as spam
body 550 5.7.1 Your email was rejected due to a high spam rate
body 550 5.7.1 message looks like spam, limit exceeded
rcpt 550 5.1.1 <user@example.com> does not have an account here; your host is fine
rcpt 450 4.2.2 quota exceeded
rcpt 451 4.2.2 Quota exceeded for recipient
rcpt 552 5.2.2 Quota exceeded for user@example.com
rcpt 554 5.2.2 Delivery rejected: quota exceeded
rcpt 450 <user@example.com>: Recipient address rejected: Policy delay, try again later
mail 552 5.3.4 message too big
mail 523 5.2.3 too big
mail 553 5.6.7 smtputf8
rcpt 452 4.2.2 The recipient's mailbox is over quota
rcpt 550 5.7.1 Too many messages for this mailbox
rcpt 450 4.7.1 <user@example.com>: rate limited: recipient is over limit
rcpt 451 4.3.0 <user@example.com>: Temporary lookup failure
rcpt 450 4.7.1 The recipient is currently over quota, rate exceeded
rcpt 552 5.2.2 The recipients mailbox is full
rcpt 550 5.2.2 Mailbox is full / Blocks limit exceeded / Inode limit exceeded
rcpt 552 5.2.2 Message would exceed quota for user@example.com
rcpt 552 <user@example.com> quota exceeded
rcpt 452 <user@example.com> over quota
rcpt 450 4.2.2 user@example.com has exceeded quota limit
rcpt 452 4.1.1 user@example.com 4.2.2 mailbox full
rcpt 550 Mailbox for user is over the allowed quota
rcpt 550-5.2.1 The user you are trying to contact is receiving mail at a rate that prevents
rcpt 450 4.2.0 <user@example.com>: Recipient address rejected: Greylisted for 60 seconds
rcpt 450 4.7.1 <user@example.com>: Recipient address rejected: Greylisting in effect, please come back later
rcpt 451 4.7.1 You have been greylisted, wait 5 minutes
rcpt 421 4.7.0 greylisted, try again later
rcpt 550 5.1.1 user@example.com: Email address could not be found, or was misspelled (G8)
rcpt 550 #5.1.0 Address rejected.
rcpt 550 5.4.1 [user@example.com]: Recipient address rejected: Access denied
rcpt 554 30 Sorry, your message to user@example.com cannot be delivered. This mailbox is disabled (554.30).
rcpt 550 Requested action not taken: mailbox unavailable
rcpt 550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302)
body 550 5.7.1 Message rejected due to content restrictions
body 554 5.7.1 Message rejected because of a spam verdict, sender reputation low
body 554 5.7.1 Blocked - see http://x - spam
body 550 5.7.350 Remote server returned message detected as spam
body 550 5.7.1 Your message looks like spam or has been reported as spam please read
body 554 5.2.0 STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded
rcpt 554 5.2.0 STOREDRV.Deliver; mailbox over quota
body 550 5.2.0 message rejected by recipient rule
body 554 5.7.1 rejected by recipient's spam settings
body 450 4.7.1 spam suspicion, please retry later
body 550 5.7.1 rejected: rate of spam too high
rcpt 550 5.1.1 unknown user in domain example.com, try your account manager
rcpt 451 4.2.1 mailbox temporarily disabled
rcpt 450 4.2.0 mailbox busy
rcpt 450 4.1.2 Domain not found
rcpt 550 5.1.2 Recipient address rejected: Domain not found
rcpt 554 5.7.1 recipient does not accept messages from your domain
rcpt 550 5.7.1 Recipient blocked this sender
rcpt 550 5.7.1 Sender is blocked by user@example.com
rcpt 550 5.7.1 sender is on the user's block list
rcpt 550 5.7.1 user@example.com has exceeded its quota
rcpt 451 4.7.1 Recipient rate limit exceeded for user@example.com
rcpt 450 4.7.1 Recipient limit exceeded for this address
rcpt 451 4.7.1 Ratelimit "to" exceeded
body 451 4.7.1 Ratelimit "bounce_to_ip" exceeded
rcpt 550 5.7.1 mailbox is over limit for messages per day
rcpt 421 4.2.2 Mailbox full
body 550 5.7.26 This mail has been blocked because the sender is unauthenticated. SPF = did not pass
body 550 5.7.27 This mail has been blocked because SPF does not pass
body 550 5.7.30 This mail has been blocked because DKIM does not pass
body 421 4.7.32 Your email has been rate limited because the From: header isn't aligned with SPF or DKIM
body 550 5.7.509 Access denied, sending domain example.com does not pass DMARC verification
body 554 5.7.9 Message not accepted for policy reasons
body 554 5.7.1 line limit exceeded
body 554 5.7.1 rejected by our filter pipeline
rcpt 550 5.1.1 no such user since the last synchronization
body 554 5.7.1 message length exceeds administrative limit
body 554 5.7.1 message mime complexity exceeds the policy maximum
rcpt 550 SPF Sender Invalid - envelope rejected
rcpt 550 DMARC Sender Invalid - envelope rejected
rcpt 454 4.7.0 <user@example.com>: greylisted
rcpt 454 4.7.0 <user@example.com>: Recipient address rejected: try again later
rcpt 550 5.7.10 Encryption required by the recipient
body 550 5.7.10 TLS is required by the destination domain
rcpt 530 5.7.0 STARTTLS is required by the recipient's server
rcpt 550 5.7.10 The recipient requires encryption
rcpt 452 4.7.1 Daily limit of messages to <user@example.com> exceeded
rcpt 450 4.7.1 daily limit for <user@example.com> reached
rcpt 450 4.7.1 Too many verification mails sent to user
rcpt 550 Too many messages sent to the recipient today
rcpt 450 Hourly limit of mails to user@example.com is exceeded
rcpt 550 5.7.1 Recipient is on the account's suppression list
body 554 5.7.1 Address is on your account suppression list
rcpt 550 address suppressed, on our suppression list
rcpt 450 4.1.1 <user@example.com>: unverified address: mx.example.com[192.0.2.7] said: 421 4.7.0 Too many connections
rcpt 450 4.2.0 <user@example.com>: unverified address: connect to mx.example.com[192.0.2.7]:25: your IP is blocked
rcpt 450 <user@example.com>: host mx.example.com said: 450 4.7.1 rate limit exceeded
rcpt 550 Callout verification failed: | 550 Authentication required
rcpt 550 5.1.1 Callout verification failed: | 550 5.7.1 your IP is blocked
rcpt 550 Callout verification failed: | 550 sender domain not verified
rcpt 451 Could not complete recipient verify callout: 421 4.7.0 throttled
rcpt 550 Verification failed for <user@example.com> | 530 5.7.0 Must issue a STARTTLS command first
rcpt 550 response to "RCPT TO:<user@example.com>" was: 550 Your daily sending quota exceeded
data 550 remote host mx.example.net: 535 Authentication required
rcpt 421 4.3.0 <user@example.com> cannot be verified now
rcpt 421 <user@example.com>: try later
body 503 5.7.1 rejected, spam
body 503 5.6.0 message refused
rcpt 503 5.1.1 no such user
rcpt 451 4.3.0 <user@example.com>: Temporary lookup failure
rcpt 550 user@example.com: relaying to this address is blocked by the recipient
rcpt 550 5.7.1 message with a link to a page on our block list
rcpt 550 5.7.1 Your domain is not allowed to send to this recipient
rcpt 550 5.7.1 The domain example.com is not allowed to send mail to this group
rcpt 550 5.7.1 Sender domain not allowed to send messages to this mailbox
rcpt 550 5.7.1 Domain example.com not allowed to send email to <user@example.com>
rcpt 550 5.7.1 Rejected by recipient's policy: sender verification failed
body 550 5.7.1 Sending disabled for this recipient
rcpt 452 <user@example.com>: insufficient disk space
rcpt 452 Insufficient disk space in the mailbox of the recipient
rcpt 451 4.3.0 Temporary system problem with this mailbox
rcpt 550 <user@example.com>: Relaying disallowed
rcpt 550 5.7.1 relaying disallowed to user@example.com
rcpt 550 5.7.1 <user@example.com>: Relaying denied
rcpt 550 5.7.1 relaying denied to user@example.com
body 432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded
body 554 5.2.0 STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded; Failed to process
body 554 Message rejected: Email address is not verified. The following identities failed the check: user@example.com
body 550 You tried to send to a recipient that has been marked as inactive. Found inactive addresses: user@example.com.
rcpt 550 5.2.1 This account is paused
body 550 5.6.0 invalid sequence of bytes in header
body 550 5.7.26 sender domain example.com not verified by SPF or DKIM
body 550 5.0.350 Remote server returned an error -> 550 5.7.1 Your IP is blocked
mail 552
mail 552 Requested mail action aborted: exceeded storage allocation
mail 552 Message exceeds fixed maximum message size
mail 552 Message larger than 10240000 bytes
mail 552 message too large
mail 552 message exceeds 10 MB
mail 552 Message is too long
mail 552 Outgoing message size limit exceeded
mail 554 Message size exceeds fixed limit
rcpt 554 5.7.1 This address does not accept mail from unauthenticated senders
rcpt 550 5.7.1 Recipient requires authentication of sender
rcpt 550 5.7.1 This recipient requires authentication
rcpt 550 5.7.1 This mailbox requires sender authentication
rcpt 550 5.7.1 Recipient only accepts mail from authenticated users; sender not authenticated
rcpt 550 5.7.1 User does not accept messages from unauthenticated senders
rcpt 550 5.7.1 <user@example.com> does not accept mail from unauthenticated senders
rcpt 550 5.7.1 <user@example.com> requires authentication of the sender
rcpt 550 5.7.1 The mailing list requires authenticated senders
rcpt 550 5.7.1 Distribution group requires authentication
rcpt 550 5.7.1 Please log in to https://mx.example/ to be accepted by us
body 550 5.7.1 Sender authentication failed
body 550 5.7.1 E-mail authentication failed
rcpt 554 mailbox has exceeded the daily limit
rcpt 554 The mailbox is over its hourly limit
rcpt 554 mailbox daily limit exceeded
rcpt 550 mailbox: too many messages per hour
rcpt 450 mailbox receives more than 50 messages per hour
rcpt 550 inbox has reached the daily quota
rcpt 450 <user@example.com>: more than 50 messages per hour
rcpt 450 <user@example.com>: hourly limit exceeded
rcpt 450 4.7.1 <user@example.com>: too many messages
rcpt 450 user@example.com has reached its limit of 50 messages per hour
rcpt 451 4.7.1 <user@example.com>: rate limit exceeded
rcpt 450 More than 50 messages per hour to <user@example.com>
body 554 rejected by Sieve filter: sender blocked
body 550 sieve: your host is blocked
body 550 5.7.1 message rejected by user filter: sender blocked
body 550 message refused by mailbox rule: sender blocked
body 550 discarded by vacation script: sender unknown
body 550 5.7.1 message rejected: contains URL blocked by reverse DNS blacklist
body 550 5.7.1 URL listed by reverse DNS blacklist
body 554 5.7.1 message contains a domain listed in the SURBL DNSBL
body 554 5.7.1 message body contains a URI whose IP is listed
body 550 5.7.1 Link in message is in an RBL
rcpt 550 5.7.1 user@example.com does not accept mail from otp@example.com
rcpt 550 5.7.1 otp@example.com is blocked by user@example.com
rcpt 550 otp@example.com is blocked by this recipient
rcpt 550 5.7.1 otp@example.com is not in my contacts, this mailbox only accepts known senders
rcpt 550 5.7.1 otp@example.com is not in the recipient's safe senders list
rcpt 550 5.7.1 otp@example.com is not allowed to send to this group
rcpt 550 5.1.1 No such user here; if this is an error, contact us from otp@example.com
rcpt 550 No such user (mail from otp@example.com)
rcpt 552 5.2.2 Mailbox full, message from otp@example.com refused
body 550 5.7.1 mail from otp@example.com looks like spam
body 550 SPF check failed for otp@example.com
body 552 message from otp@example.com too large
rcpt 450 4.7.1 otp@example.com greylisted
rcpt 451 4.7.1 otp@example.com not yet known, try again later
rcpt 451 4.7.1 Sender not yet known
rcpt 451 sender not known yet
rcpt 451 4.7.1 Unknown sender, try again later
rcpt 450 4.7.1 Client never seen before
rcpt 450 4.7.1 <otp@example.com>: please come back later
rcpt 550 otp@example.com is not on the user's list of friends
"""


def _outcome(line: str) -> Outcome | None:
    stage, reply = line.split(" ", 1)
    return classify(
        to_reply(
            (int(reply[:3]), reply[4:].replace(" | ", "\n")),
            cast("Stage", stage),
            sender="otp@example.com",
            login="smtp@example.org",
        )
    )


def _table(kind: str, lines: str) -> list[tuple[str, str]]:
    return [(kind, line) for line in lines.strip().splitlines()]


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        *_table("throttled", LIMITS),
        *_table("sender_refused", SENDER_REFUSED),
        *_table("login_refused", LOGIN_REFUSED),
        *_table("unreachable", UNREACHABLE),
    ],
)
def test_a_reply_about_our_account_is_about_every_mail(reason: str, line: str):
    outcome = _outcome(line)
    assert isinstance(outcome, Unavailable), outcome
    assert outcome.reason == reason


def test_the_sender_is_found_behind_a_long_display_name():
    outcome = _outcome(
        "body 554 Message rejected: Email address is not verified. The following identities failed the check in region "
        f"EU-WEST-1: {'Example International Trading and Holding Company ' * 4} <otp@example.com>"
    )
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == "sender_refused"


@pytest.mark.parametrize("line", SOME_TROUBLE.strip().splitlines())
def test_a_reply_about_our_account_in_other_words_is_about_every_mail(line: str):
    assert isinstance(_outcome(line), Unavailable)


@pytest.mark.parametrize(
    "line",
    [
        "mail 451 5.7.3 STARTTLS is required to send mail",
        "rcpt 550 Must issue a STARTTLS command first",
        "body 454 please use STARTTLS",
    ],
)
def test_a_relay_that_wants_tls_first_is_recognised_with_any_code(line: str):
    outcome = _outcome(line)
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == "tls_failed"


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "body"])
@pytest.mark.parametrize(
    "reply",
    [
        "503 5.5.1 bad sequence of commands",
        "503",
        "554 SMTP synchronization error",
        "554 5.5.0 Error: SMTP protocol synchronization",
        "503 5.5.0 <END-OF-MESSAGE>: End-of-data rejected: Improper use of SMTP command pipelining",
        "451 4.5.0 Improper use of SMTP command pipelining",
    ],
)
def test_a_command_at_the_wrong_time_is_about_no_mail_and_no_sender(stage: str, reply: str):
    assert _outcome(f"{stage} {reply}") is None


@pytest.mark.parametrize("code", [450, 550])
@pytest.mark.parametrize(
    "domain", ["throttled.example", "rdns.example", "your-ip-is-blocked.example", "authentication-required.example"]
)
def test_words_in_the_recipients_domain_decide_nothing(code: int, domain: str) -> None:
    for template in (
        "<{a}>... Host unknown (Name server: {d}.: host not found)", "DNS lookup for {d} failed",
        "relay not permitted to {d}", "all hosts for {d} have been failing for a long time", "MX of {D} is invalid",
    ):  # fmt: skip
        text = template.format(a=f"eve@{domain}", d=domain, D=domain.upper())
        reply = to_reply((code, text), "rcpt", secrets=(f"eve@{domain}", "739154"))
        assert isinstance(classify(reply), Rejected if code == 550 else Deferred), text


@pytest.mark.parametrize("line", RECIPIENTS_OWN.strip().splitlines())
def test_a_reply_about_one_recipient_or_message_concerns_no_other(line: str):
    outcome = _outcome(line)
    assert isinstance(outcome, Rejected if line.split()[1].startswith("5") else Deferred), outcome

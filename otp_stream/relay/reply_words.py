"""Wordings that distinguish replies with the same codes: refusals by one recipient, and limits of our account.

Collected from Amazon SES, Brevo, cPanel (Exim), Exchange Online, Fastmail, GMX, Gmail, iCloud, Mailgun, NetEase, OVH,
Postfix, QQ, Rackspace, SendGrid, SMTP2GO, SparkPost, Yahoo, Yandex and Zoho. Addresses in a reply are masked by `***`,
the sender's own by `SENDER_EMAIL`, the login's by `SMTP_USER`.
"""

from otp_stream.core.wording import Wording

_FEW = r"(?:[\w'-]+ ){0,4}"
_MAILS = r"(?:e-?mails?|mails?|messages?|recipients?)"
_TIME = r"(?:seconds?|minutes?|hours?|days?|weeks?|months?|24 ?h(?:ours?)?)"
_LIMIT = r"(?:limit(?:s|ation)?|quotas?|allowances?|caps?|thresholds?|maxim(?:um|a))"
_PERIOD = r"(?:hourly|daily|weekly|monthly|yearly|annual|hour|day|month|24[ -]?h(?:ours?)?)"
_REQUIRED = r"(?:is )?(?:required|needed|necessary|mandatory|first)"
_LOG_IN = r"(?:log|sign)(?:ged|ned)?[ -]?(?:in|on)"
_NO_PAGE = r"(?! (?:to|at|into|on) (?:https?:|www\.|our |the |your ))"
"""Excludes the login to a web page, where a recipient's provider can be asked for something."""
_OURS = r"(?:SENDER_EMAIL|SMTP_USER)"
_WHOSE = rf"[<(\"']*(?:\*\*\*|{_OURS}|[\w.-]+\.[a-z]{{2,}})[>)\"':]*"
"""A masked address or a domain."""

STARTTLS = Wording(
    r"starttls (?:command )?(?:is )?(?:required|needed|first)", r"(?:must|need to|please) (?:\w+ ){0,3}starttls"
)
"""The relay wants TLS first."""

LOGIN = Wording(
    rf"\b(?:auth(?:enticat(?:ion|e))?|{_LOG_IN}) {_REQUIRED}",
    rf"(?:must|have to|need to|please) (?:first )?(?:be )?(?:authenticate|{_LOG_IN}\b{_NO_PAGE})",
    rf"\b{_LOG_IN}\b.{{0,40}}\b(?:to|before) (?:you )?(?:can )?(?:send|relay|submit)",
    r"requires? (?:smtp )?auth|authentication (?:must|has to) be (?:enabled|used)",
    # beside a limit, the login was refused because of it
    r"\b(?:auth(?:entication)?|log-?in) (?:has )?(?:failed|failure|unsuccessful|error)\b"
    rf"(?!.{{0,80}}(?:credit|{_LIMIT}))",
    r"(?:need|issue|use|send|try)\b.{0,20}\bauth\b",
    r"auth(?:enticate)? command first",
    r"(?:invalid|bad|wrong|incorrect) (?:credentials|log-?in\b|password|user ?name (?:or|and) password)",
    r"(?:not|un)[ -]?(?:yet |been )?(?:authenticated|logged[ -]in)",
)
"""The relay wants a login."""
LOGIN_FAILED = Wording(r"auth", r"log-?[io]n", r"password|credential", r"2-step|account")
"""Required beside the status of a failed login, which some relays use for mail that breaks a policy."""
NO_LOGIN = Wording(
    r"\b(?:spf|dkim|dmarc)\b",
    r"RESOLVER\.",
    r"unauthenticated (?:e-?mails?|messages?|mails?)|(?:mail|message) is (?:un|not )authenticated",
    r"(?:e-?mail|message|sender|domain|header) authentication (?:has )?(?:failed|failure|unsuccessful|error)",
    rf"for {_FEW}(?:mailbox|group|recipient|list)\b",
)
"""About another authentication: of the message's domain, or of a sender to a closed group."""

_PASSES = r"(?:pass|fail|polic|authenticat|align|check|verification|valid)"
AUTHENTICITY = Wording(rf"\b(?:spf|dkim|dmarc)\b.{{0,60}}{_PASSES}", rf"{_PASSES}\w*\b.{{0,60}}\b(?:spf|dkim|dmarc)\b")
"""A later server does not trust the message's domain. The servers of other recipients may not check that."""

OUR_DOMAIN = Wording(
    rf"domain (?:{_WHOSE} )?(?:is )?not allowed to send\b(?!.{{0,60}}(?:limit|too many))(?! {_FEW}to\b)",
    rf"(?:sender|sending|from) domain (?:{_WHOSE} )?(?:is |has )?(?:not (?:been |yet )*verified|unverified)",
    r"sending (?:is |has been )?(?:paus|disabl|suspend)",
    r"sender verif(?:y|ication) failed",
    r"verification failed for \W*SENDER_EMAIL",
)
"""Our domain or address is refused, even if the reply also mentions SPF, DKIM or a mailbox."""

THEIRS = Wording(
    r"recipient's\b", rf"\b(?:to|for|by) (?:this|that|the) {_FEW}(?:recipient|mailbox|group|user|person|list)\b"
)
"""With these words it is about the recipient after all."""
TLS = Wording(r"\btls\b", r"encrypt|starttls")
MAILBOX = Wording(r"\*\*\*|mail-?box|recipient")

_OUT = r"(?:send|sent|out-?going|out-?bound|submi|smtp|relay)"
_BOX = r"(?:mail-?box(?<!your mailbox)(?<!your mail-box)|in-?box(?<!your inbox)(?<!your in-box))"
_NO_OTHER = rf"(?!.*\b(?:{_OUT}|(?:you|your|account|client|host|ip|policy)\b|(?:recipient )?address rejected))"
"""With these words, a limit is not the recipient's."""

_ACCEPTS = rf"(?:(?!{_OURS})\w+ ){{0,3}}(?:requires?|accepts?|allows?)\b"

RECIPIENTS_OWN = Wording(
    r"gr[ae]y-?list",
    r"RESOLVER\.",
    r"receiving (?:too )?(?:e-?mails?|mail|messages|much|many)",
    r"(?:trying|tried) to (?:reach|contact|e-?mail|send)",
    rf"recipient(?:'s)? (?:{_WHOSE} )?"
    r"(?:has|have|is|are|was|mailbox|inbox|account|quota|over|does|did|will|can|only|requires?|accepts?|allows?)\b",
    r"recipient's |recipient thread limit",
    rf"(?:{_BOX}|\*\*\*[>)\"':]*) {_ACCEPTS}",
    rf"\b(?:group|(?:the|this|mailing) list|(?<!from )(?:this|that|destination) address) {_ACCEPTS}",
    r"\buser (?:only |does not |doesn't )(?:accepts?|allows?)\b",
    rf"{_BOX}\b:? (?!.{{0,100}}{_OUT})(?:(?!{_OURS})\w+ ){{0,6}}(?:limit|quota|{_MAILS} (?:per|an?|each|every) )",
    rf"^[^\w*]*\*\*\*{_NO_OTHER}.*(?:limit|quota|rate\b|too many|more than|{_MAILS} (?:per|an?|each|every) )",
    rf"^{_NO_OTHER}.*more than\b[^,.;:]{{0,40}} (?:to|for) [<(\"']*\*\*\*",
    r"\b(?:sieve\b|vacation (?:script|rule|filter))",
    r"(?:user|recipient|mail-?box|personal)(?:'s|-defined)? (?:filter|rule|script)",
    # of the message's content
    r"\bcontain(?:s|ing) (?:\w+ ){0,3}(?:url|uri|link)s?\b",
    r"\b(?:mail|message|body|content) contains (?:\w+ ){0,3}(?:domain|host|ip)\b",
    r"\b(?:url|uri|link)s? (?:(?:in|of) (?:the |this |your )?(?:mail|message|body) )?(?:is |was |are |has been )?"
    r"(?:block|list|black|bann|reject|in an? )",
    r"\bto (?:this|that|the same|each|one|a single) "
    r"(?:recipient|addressee|user|mailbox|account|person|address|group|list)\b",
    r"\b(?:for|by) (?:this|that|the same|each|one|a single) (?:recipient|addressee|mailbox|person|group|list)\b",
    r"recipient\b(?! address rejected).{0,60} for \W*(?:\*\*\*|this address)",
    r"\"(?:bounce_)?to(?:_\w+)?\"",  # the name of an rspamd rate
    r"(?<!your )mail-?box (?:is )?(?:over|full)\b",
    r"(?:blocked|rejected|refused|restricted|denied|filtered) by "
    r"(?:the |this )?(?:recipient|user|addressee|mailbox|<?\*\*\*)",
    r"(?:allowed|accepted|approved|safe)[ -]senders?(?: |-)list",
    rf"(?:allowed|permitted|authori[sz]ed|permission) to send {_FEW}to\b(?! our\b)",
    r"sender (?:is )?not authenticated for",
    r"(?:tls|encrypt)\w*\b.{0,40}(?:required|demanded|needed) by (?:the |this )?(?:recipient|destination|remote)",
    r"(?:recipient|destination)(?:'s)? (?:\w+ )?(?:requires|demands|needs)\b.{0,40}(?:tls|encrypt)",
    r"remote server returned",
    r"\bsent to (?:the |a )?(?:recipient|addressee|user|address|mailbox)\b",
    r"^(?!.*\b(?:sending|out-?going|out-?bound|submission|smtp|relay|sender|account|your)\b)"
    r".*(?:limit|quota|rate|too many)\b[^,.;:]{0,40} (?:to|for) [<(\"']*\*\*\*",
    r"suppression list",
    r"unverified address",
    r"^\W*\*\*\*[>)\"':]* (?:cannot|can't|could not) be verified",
)
"""About this recipient, whatever else the text contains."""

SENDER_QUOTA = Wording(
    r"submission ?quota",
    rf"(?:out-?going|out-?bound|send(?:ing)?|sender(?:'s)?|submission|relay(?:ing)?|smtp) {_FEW}"
    rf"(?:{_LIMIT}|limited|frequency|credits?|rate(?! of))\b",
    rf"(?:limits?|quota|number|rate)s? (?:on|of|for|to) {_FEW}{_FEW}(?:out-?going|out-?bound|sent|sending|submitted)\b",
    rf"{_MAILS}(?: sent| allowed| you (?:can|may) send)? (?:per|an|a|each|every|in (?:the last|the past|one|an?)"
    rf"|within|this|today|for (?:the|this)) ?(?:\d+ )?{_TIME}",
    rf"\b{_PERIOD} {_FEW}{_LIMIT}\b",
    rf"{_LIMIT}\b.{{0,40}}\b(?:per|this|last|past|each|every|an) (?:\d+ ?)?{_TIME}",
    rf"{_LIMIT}\b.{{0,30}}\b(?:for )?today\b",
    rf"{_LIMIT} (?:for|of) (?:the |this |your )?sender\b",
    r"max(?:imum)? (?:number of )?(?:e-?mails|mails|defers)\b",
    rf"your (?!e-?mail\b|message\b|mail\b){_FEW}(?:{_LIMIT}|credits?|balance)\b",
    r"you(?:'ve| have)? (?:already |now )?(?:exceed(?:ed)?|sent too|used (?:up )?(?:all|your))\b",
    r"you(?:'ve| have)? (?:already |now )?(?:reached|hit) .{0,40}(?:limit|quota|maximum)",
    r"sent more\b.{0,30}\bthan\b",
    r"credits? (?:limit )?(?:exceeded|exhausted|used up)",
    r"(?:not enough|insufficient|no more|out of) (?:credits?|balance|funds)",
    r"frequency limit|not allowed to send: .{0,60}(?:limit|too many)",
    r"unusual (?:sending|rate|amount|volume|activity)",
    r"(?:sent|sending|send) (?:e-?mails? |mails? |messages? )?too (?:many|much|fast|frequently|quickly|often)",
    r"\b(?:MI|RP|HL):(?:CEL|CCL|DMC|DRC|SFQ|QRC|STC|TRC|ICC|IFC|MEP)\b",
)
"""A quota or rate of the mail that we send, with any code."""

RELAYED = Wording(r"\brelay(?:ing)? (?:sending )?(?:limit|quota|rate)\b", r"STOREDRV\.Submission\.Exception:\w*Quota")
"""A quota of ours, even with the status of a mailbox, as Google Workspace's relay and Exchange Online reply."""

_REFUSED = (
    r"(?:reject|refus|deni|den(?:y|ied)|block|disabl|suspend|bann|blacklist|unverified|invalid|unknown|unauthori[sz]ed"
    r"|unauthenticated|inactive|lock|restrict|paus|fail"
    r"|not (?:\w+ ){0,2}"
    r"(?:own|verif|allow|authori[sz]|permit|valid|known|exist|accept|activ|match|resolv|recogni|found"
    r"|regist|confirm|validat|configur)"
    r"|does(?: not|n't) (?:\w+ ){0,2}(?:own|match|exist|resolve))"
)
SENDER = Wording(
    r"sender(?:'s)? (?:e-?mail |address |domain |identity |ip |host |access )*"
    rf"(?:{_WHOSE} )?(?:is |was |has been )?{_REFUSED}",
    r"sender (?:verify|verification|callout|address verification)",
    r"(?:bad|invalid|unauthori[sz]ed|unauthenticated|unverified|unknown|banned|forged) (?:outbound )?sender",
    r"verify (?:the )?sender|verif(?:y|ication) (?:failed )?(?:for )?<?SENDER_EMAIL",
    r"not verified.{0,400}SENDER_EMAIL|^(?!.*\*\*\*).*e-?mail address is not verified",
    r"SENDER_EMAIL[>)\"':]* (?:is |was )?not (?:allowed|authori[sz]ed|verified|permitted|owned|active)",
    rf"from'?(?::| e-?mail| header)? address {_FEW}(?:{_WHOSE} )?(?:is|does|must|should|not|should be)\b",
    r"mail from (?:\w+ )?(?:must|should|does|is not)",
    r"verified sender|from (?:this|that) header address",
    r"sender mismatch|(?:address|sender) does(?: not|n't) belong to your",
    r"SendAsDenied|OutboundSpam|sender signature",
    r"(?:allowed|accepted|permitted|authori[sz]ed|valid) as (?:a |the )?sender",
    r"relay\w*\b.{0,30}(?:for|as|from|by) [<(\"']*SENDER_EMAIL",
    rf"(?:your|smtp|sending) (?:\w+ )?(?:access|privileges?|permissions?|service) {_FEW}{_REFUSED}",
    r"(?:not|n't) (?:have permissions? |allowed |permitted |authori[sz]ed )to (?:send (?:\w+ )?(?:as|from|on behalf)|"
    r"perform|relay|use)\b",
    rf"(?:not|n't) (?:allowed|permitted|authori[sz]ed) to send\b(?! {_FEW}to\b)",
    r"(?:can ?not|can'?t|may not|unable to) send (?:any )?(?:more )?(?:e-?mails?|messages?|mails?)\b",
    r"relaying (?:is )?(?:denied|refused|not allowed) as\b",
    r"^(?!.*\*\*\*).*relaying (?:is )?(?:disallowed|denied)(?! to\b)|^<\S+\[[\da-f.:]+\]>: relay access denied",
    rf"(?:sending|sender|from) domain (?:{_WHOSE} )?{_FEW}{_REFUSED}",
    r"domain (?:is )?(?:unverified|not verified)|unconfigured sending domain",
    r"sender domain (?:has|without) (?:no )?(?:valid )?(?:mx|dns)\b|domain not found for sender",
    r"domain of (?:the )?sender\b.{0,80}(?:does not|doesn't) (?:exist|resolve)",
    rf"\bapi[ -]?key (?:is |was |has been )?{_REFUSED}",
    rf"your (?:[\w-]+ ){{0,3}}account (?:\w+ ){{0,5}}{_REFUSED}",
    rf"your (?:[\w-]+ ){{0,2}}(?:ip|host|server|network)\b.{{0,60}}{_REFUSED}",
    rf"(?:smtp|sending|sender) account (?:\w+ ){{0,5}}{_REFUSED}",
    rf"account (?:\w+ ){{0,4}}{_REFUSED}\w* (?:\w+ ){{0,3}}(?:sending|outgoing|outbound|smtp|spam|abuse)",
    rf"sending (?:from {_FEW})?(?:is |has been )?(?:paus|disabl|suspend|block)",
    rf"your (?:subscription|plan|trial|contract|licen[sc]e) {_FEW}(?:expired|ended|inactive)",
    rf"out(?:going|bounds?)\b.{{0,60}}(?:{_REFUSED}|held)",
    r"(?:activate|verify) your (?:[\w-]+ ){0,2}(?:account|domain|sender|address)|account (?:may not send|is pending)",
    r"rejected: account is paused|configuration set\b.{0,80} not exist|for test purposes only\b",
    r"client host\b.{0,80}(?:reject|block|deni|refus)",
    r"(?:helo|ehlo)\b.{0,40}(?:reject|invalid|refus|deni|not )",
    r"(?:invalid|bad) (?:helo|ehlo)",
    r"reverse[ -](?:dns|host ?name|lookup|mapping|name|record|ip)",
    r"\b(?:rdns|PTR)\b",
    r"(?:cannot|can't|could not|unable to) (?:find|resolve) (?:your|client)",
    r"your (?:host|server|ip)\b.{0,40}\b(?:dns|host ?name)\b",
    r"\bip (?:address )?(?:\[?[\d.:a-f]+\]? )?(?:is |has been |was )?(?:temporarily )?"
    r"(?:block|blacklist|bann|listed|reject|in (?:the )?(?:black|block) ?list|not authori[sz]ed)",
    r"banned sending ip",
    r"\bip\b.{0,50}\bnot (?:authori[sz]ed|(?:(?:on|in) )?(?:the |our )?(?:allow|white)[ -]?list)",
    rf"(?:your access|access from (?:this|your) (?:ip|host|server|network)(?: address)?) (?:\w+ ){{0,6}}{_REFUSED}",
    r"messages? from \[[\da-f.:]+\] (?:weren't|were not|was not) sent|network is on our block ?list",
    r"connections? will not be accepted from",
    r"\b(?:ip(?: |-)?address is black ?listed|ip reputation policy|is in an? (?:\w+ )?(?:rbl|dnsbl)\b)",
    r"in the \w+ dnsbl|blocked - see \S*(?:dnsbl|ipcheck)|client \[[\da-f.:]+\] blocked|ip name lookup failed",
    r"(?:block|ban|rejection|refusal|listing) of your (?:ip|host|server|domain|account|address)",
    r"your access to submit messages\b.{0,60}rejected",
    r"access denied.{0,40}(?:bad outbound|banned|traffic not accepted)",
)
"""Our sender address, account or host is refused, with any code."""

OUR_ADDRESS = Wording(
    r"^\W*(?:(?:the|your|user|account|mail-?box|address|domain|e-?mail|mail|from|sender|unknown|invalid|bad)\W+)*"
    rf"{_OURS}",
    rf"(?:unknown|no such|invalid|bad) \w+\W{{1,3}}{_OURS}|{_LIMIT}\W{{1,3}}{_OURS}",
)
"""Our address is what the reply is about, not only the origin of the mail."""
OF_OTHERS = Wording(
    *THEIRS.patterns,
    r"gr[ae]y-?list",
    r"\b(?:this|that|the) (?:recipient|mail-?box|group|user|person|list)\b",
    r"\b(?:user|recipient|addressee)'s\b",
    r"(?:my|his|her|their) (?:contacts|address book)",
    r"(?:allowed|accepted|approved|safe)[ -]senders?(?: |-)list",
)
"""A recipient refuses, or the relay asks for the mail later, although the reply names our address."""
BLOCKED = Wording(r"block|bann|suspend|disabl|den(?:y|ied)|reject|refus", r"\block")
"""A refusal, not only a request to retry later."""
RECIPIENT = Wording(
    r"mail-?box|in-?box|mail ?drop",
    r"over (?:its |their |his |her |the |disk |storage |allowed )*quota",
    r"(?:disk|storage)\b",
    r"\*\*\*[>)\"':]* (?:has |have |is |was )?(?:exceed|reached|over)",
    rf"(?:user|account|customer)(?:'s)? (?:{_WHOSE} )?(?:is|has|was|does|over|quota|unknown|not|disabled|suspended)\b",
    r"no such|unknown (?:user|recipient|address)|(?:user|recipient|address)s? (?:unknown|not found|does not exist)",
)
"""A full, closed or unknown mailbox, unless our account is named."""

CLOSED = Wording(
    r"queue file|unable to exec qq",
    r"\bqq (?:write|temporary|trouble|read|crashed|out of memory|timeout)",
    r"temporary system resource error",
    r"(?:temporary|internal) (?:service|system|server) (?:failure|error|problem)",
)
"""A temporary failure of the relay itself."""
FULL = Wording(r"insufficient (?:system |disk )+(?:storage|space|resources)")
"""With 452 (RFC 5321 §4.2.3): the relay's storage. A full mailbox is 552."""

LIMITED = Wording(
    r"throttl",
    r"rate[ -]?limit",
    r"(?:sending|submission|message|connection|mail) rate",
    r"limit (?:the )?rate",
    r"too many (?:(?!invalid|bad)[\w-]+ ){0,2}(?:connections|sessions|messages|mails|e-?mails|requests|log-?ins?|auth)",
    r"too many \w+ from your (?:ip|host|server|address)",
    r"too many (?:connected )?clients|too many recipients|too much mail(?! data)|too frequent|too (?:fast|quickly)",
    r"(?:connections?|hourly|daily|sending|submission|message|e-?mail)(?: \w+){0,6} (?:limit|quota)s? "
    r"(?:has been |is |was )?(?:exceeded|reached)",
    r"server (?:is )?(?:too )?busy|all server ports are busy",
    r"exceeded permitted limits",
)
"""A limit that names no owner. Greylisting has other words, and so has a mailbox."""

SESSION = Wording(r"\b(?:per|this|one|single|each|current) (?:smtp )?(?:connection|session)\b")
"""The limit of one session."""
ERRORS = Wording(
    r"too many (?:smtp |protocol )?(?:errors|bad|invalid|unknown|unrecogni[sz]ed|failed|rejected|refused|syntax)"
)
"""With 421: the same limit."""

OUT_OF_STEP = Wording(
    r"pipelin(?:ed|ing)\b",
    r"(?:smtp|protocol) synchroni[sz]ation",
    r"(?:bad|wrong|invalid|out of|improper) (?:command )?sequence\b(?! of (?!commands))",
)
"""With 4xx or 5xx: a command at the wrong time. Exim and Postfix do not always reply 503 to that."""

QUOTA = Wording(r"\b(?:quotas?|rate|limits?|limited)\b", r"exceed")
"""Sufficient with a status X.7.X, which is about policy, not about a mailbox."""
CONTENT = Wording(
    r"spam|unsolicited|virus|malware|phish|content|attachment|too (?:large|big)|complexity",
    r"\b(?:score|size|hops?|lines?|length|mime|headers?)\b",
)
SIZE = Wording(r"\bsize\b", r"too (?:large|big)|bytes\b")
MESSAGE_SIZE = Wording(r"\b(?:message(?:'s)? size|(?:mail|message) (?:is )?too (?:large|big|long))\b")
"""At MAIL, with any 5xx."""
TOO_BIG = Wording(
    r"^$|^(?!.*\b(?:mail-?box|account|hourly|daily|monthly|today|per (?:hour|day)))"
    r".*(?:storage allocation|\bsize\b|\b(?:large|long|big)(?:g?er)?\b|\blength\b|\bbytes\b|\d ?[kmg]i?b\b"
    r"|fixed (?:limit|maximum))"
)
"""At MAIL, with 552: about this message. A mailbox would be our own, and the code alone means storage (RFC 5321)."""
ENCODING = Wording(r"smtputf8|8bitmime|utf-?8|non-ascii|international", r"\bbody\b")

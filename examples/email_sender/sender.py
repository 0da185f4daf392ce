"""The sender: knows how to deliver a message, and nothing about queues.

With $SMTP_HOST it uses that mail server. Without, it plays one that greylists: it turns each recipient away
once, as many real ones do, and refuses addresses at example.invalid for good.
"""

import os
import smtplib
from email.message import EmailMessage

from message import Message

SENDER = "streamfleet@example.com"

_seen: set[str] = set()


class NotNow(Exception):
    """The mail server asks to try again later."""


class Rejected(Exception):
    """The mail server will never take this message."""


def send(message: Message, message_id: str) -> None:
    """Deliver. The same ``message_id`` at each attempt lets mail servers recognise a repetition."""
    host = os.environ.get("SMTP_HOST")
    if not host:
        _pretend(message)
        return
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = SENDER, message.to, message.subject
    mail["Message-ID"] = f"<{message_id}@example.com>"
    mail.set_content(message.body)
    try:
        with smtplib.SMTP(host, timeout=10) as server:
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        code, reason = error.recipients[message.to]
        raise (NotNow if code < 500 else Rejected)(f"{code} {reason.decode(errors='replace')}") from error


def _pretend(message: Message) -> None:
    if message.to.endswith("@example.invalid"):
        raise Rejected("550 no such domain")
    if message.to not in _seen:
        _seen.add(message.to)
        raise NotNow("450 greylisted, try again later")

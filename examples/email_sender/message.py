"""What client and worker agree on: the queue's name, and what a task's payload looks like."""

import json
from dataclasses import asdict, dataclass

QUEUE = "email"


@dataclass(frozen=True)
class Message:
    to: str
    subject: str
    body: str

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> "Message":
        return cls(**json.loads(data))

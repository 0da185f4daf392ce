"""The worker: takes messages from the queue and has the sender deliver them.

streamfleet run worker:worker
"""

import sender
from message import QUEUE, Message
from server import driver

from streamfleet import DoNotRetry, Task
from streamfleet.sync import Worker

worker = Worker(driver, concurrency=5)


@worker.handler(QUEUE, timeout=30)
def send(task: Task) -> str:
    message = Message.decode(task.data)
    try:
        sender.send(message, message_id=task.id)
    except sender.Rejected as error:
        raise DoNotRetry(str(error)) from error
    return f"{message.to}: sent at attempt {task.attempt}"  # any other exception means: try again

"""Drives the flag vendor's own client over pipes, in lines of JSON.

Usage: vendor_client.py URL API_KEY

The first line out says whether the client is ready. From then on every line in is a question, `{"ask": NAME, ..}`, and
is answered with a line, `{"answer": ..}`. Between the answers stands what the client is told meanwhile: changes, by its
own listener and by OpenFeature's, and what it logs. It shuts down at the end of the input.
"""

import json
import logging
import sys
import threading
from dataclasses import asdict

from answers import details, evaluation_context
from flipswitch import FlipswitchProvider
from openfeature import api
from openfeature.event import ProviderEvent
from openfeature.exception import OpenFeatureError

# Not buffered: the client leaves its reader behind at the end, which must not hold a buffer that the end wants to flush.
out = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
writing = threading.Lock()


def tell(**line):
    with writing:
        out.write(json.dumps(line).encode() + b"\n")


class Told(logging.Handler):
    def emit(self, record):
        tell(heard="log", level=record.levelname, logger=record.name, text=record.getMessage())


class Questions:
    details = staticmethod(details)

    def __init__(self, provider):
        self._provider = provider

    def status(self):
        return self._provider.get_sse_status().value

    def one(self, key, context):
        evaluation = self._provider.evaluate_flag(key, evaluation_context(context))
        return evaluation and asdict(evaluation)

    def all(self, context):
        evaluations = self._provider.evaluate_all_flags(evaluation_context(context))
        return [asdict(evaluation) for evaluation in evaluations]


def main(url, api_key):
    logging.getLogger().addHandler(Told())
    # Heartbeats and API keys to come show nowhere else.
    logging.getLogger("flipswitch").setLevel(logging.DEBUG)
    provider = FlipswitchProvider(api_key, url)
    provider.add_flag_change_listener(
        lambda event: tell(heard="listener", flag=event.flag_key, at=event.get_timestamp_as_datetime().isoformat())
    )
    api.add_handler(
        ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, lambda event: tell(heard="openfeature", flags=event.flags_changed)
    )
    try:
        api.set_provider_and_wait(provider)
    except OpenFeatureError as error:
        tell(answer=error.error_message)
        return
    tell(answer="ready")
    questions = Questions(provider)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        tell(answer=getattr(questions, question.pop("ask"))(**question))
    api.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Controls Flipswitch's client for Python over pipes, with lines of JSON.

Usage: vendor_client.py URL API_KEY

The first line of the output says whether the client is ready. From then on, every line of the input is a question,
`{"ask": NAME, ..}`, and the output has one line for it, `{"answer": ..}`. Between the answers, the output has changes, from the
client's own listener and from OpenFeature's, and log lines. The program shuts down at the end of the input.
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

# Not buffered: the client leaves a reader thread behind, which must not hold the lock of a buffer that is flushed at the end.
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
    # Heartbeats and announced API keys are visible only in the log.
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

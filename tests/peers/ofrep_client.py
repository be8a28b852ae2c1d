"""Controls OpenFeature's OFREP provider for Python over pipes, with lines of JSON.

Usage: ofrep_client.py URL HEADERS, where the headers are a JSON object.

The first line of the output says that the provider is ready. From then on, every line of the input is a question,
`{"ask": NAME, ..}`, and the output has one line for it, `{"answer": ..}`. The provider sends a request for each evaluation,
and receives no changes.
"""

import json
import logging
import sys

from answers import details
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider


def tell(**line):
    print(json.dumps(line), flush=True)


def main(url, headers):
    # The answers contain errors, so they need not be logged.
    logging.getLogger().addHandler(logging.NullHandler())
    headers = json.loads(headers)
    api.set_provider_and_wait(OFREPProvider(url, headers_factory=lambda: headers))
    tell(answer="ready")
    for line in sys.stdin.buffer:
        question = json.loads(line)
        tell(answer={"details": details}[question.pop("ask")](**question))
    api.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Drives OpenFeature's own OFREP provider for Python over pipes, in lines of JSON.

Usage: ofrep_client.py URL HEADERS, where the headers are a JSON object.

The first line out says that the provider is ready. From then on every line in is a question, `{"ask": NAME, ..}`, and is
answered with a line, `{"answer": ..}`. The provider asks the service for each evaluation, and receives no changes.
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
    # Errors are part of the answers.
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

"""Drives OpenFeature's own OFREP provider for Python over pipes, in lines of JSON.

Usage: ofrep_client.py URL HEADERS, where the headers are a JSON object.

The first line out says that the provider is ready. From then on every line in is a question, `{"ask": NAME, ..}`, and is
answered with a line, `{"answer": ..}`. The provider asks the service for each evaluation, and is told nothing.
"""

import json
import logging
import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext


def tell(**line):
    print(json.dumps(line), flush=True)


def details(type, key, default, context):
    attributes = dict(context)
    context = EvaluationContext(attributes.pop("targetingKey", None), attributes)
    details = getattr(api.get_client(), f"get_{type}_details")(key, default, context)
    if details.error_code:
        return {"value": details.value, "error": details.error_code.value, "message": details.error_message}
    return {
        "value": details.value,
        "variant": details.variant,
        "reason": details.reason,
        "metadata": dict(details.flag_metadata),
    }


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

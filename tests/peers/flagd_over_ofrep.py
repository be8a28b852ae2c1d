"""Serves a flagd flags file over OFREP: fast-feature's HTTP layer in front of flagd's own evaluator.

Usage: flagd_over_ofrep.py FLAGS_FILE PORT; port 0 takes a free one. The URL is printed once connections are accepted.

A change of the file counts from the next request.
"""

import json
import socket
import sys
from pathlib import Path

import uvicorn
from fast_feature.core import ErrorCode, EvaluationOutcome, FlagRepository, Reason
from fast_feature.engine import TargetingEngine
from fast_feature.ofrep import OfrepRouter
from fastapi import FastAPI
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError


class FlagdFile(FlagRepository, TargetingEngine):
    """To the HTTP layer both the store and the engine; a flag is its key, since only the evaluator knows the rest."""

    def __init__(self, path):
        self._path = path
        self._text = None
        self._read()

    def _read(self):
        text = self._path.read_text(encoding="utf-8")
        if text == self._text:
            return
        core = FlagdCore()
        core.set_flags(text)
        resolve_by_type = {
            bool: core.resolve_boolean_value,
            str: core.resolve_string_value,
            int: core.resolve_integer_value,
            float: core.resolve_float_value,
            dict: core.resolve_object_value,
            list: core.resolve_object_value,
        }
        # flagd's flags have no type of their own and its evaluator asks for one: the variants show it.
        self._resolve = {
            key: resolve_by_type[type(next(iter(flag["variants"].values())))]
            for key, flag in json.loads(text)["flags"].items()
        }
        self._text = text

    async def get(self, key):
        self._read()
        return key if key in self._resolve else None

    async def list_all(self):
        self._read()
        return sorted(self._resolve)

    async def create(self, flag):
        raise NotImplementedError("the flags come from a file")

    update = delete = create

    def evaluate(self, flag, context=None):
        attributes = dict(context or {})
        context = EvaluationContext(attributes.pop("targetingKey", None), attributes)
        try:
            # The default is the caller's, who is not here: None leaves the value out of the answer.
            details = self._resolve[flag](flag, None, context)
        except OpenFeatureError as error:
            return EvaluationOutcome.error(flag, ErrorCode(error.error_code.value), error.error_message)
        metadata = dict(details.flag_metadata) or None
        return EvaluationOutcome(flag, Reason(details.reason.value), details.value, details.variant, metadata)


def main(path, port):
    flags = FlagdFile(Path(path))
    app = FastAPI(title="flagd over OFREP")
    app.include_router(OfrepRouter.build(flags, engine=flags))
    listener = socket.create_server(("127.0.0.1", int(port)))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])

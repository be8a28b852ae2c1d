"""Serves a flagd flags file over OFREP: fast-feature's HTTP layer in front of flagd's own evaluator.

Usage: flagd_over_ofrep.py FLAGS_FILE PORT. Port 0 selects a free port. The program prints the URL once it accepts connections.

A change of the file applies from the next request on.
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
    """The store and the engine of the HTTP layer. A flag is represented by its key, because only the evaluator knows the rest."""

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
        # flagd's evaluator needs a type, which its flags do not have. The variants show the type.
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
            # The caller's default is not known here. None leaves the value out of the response.
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

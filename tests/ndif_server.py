"""A stand-in for an NDIF server: what nnsight's client asks of one, for one model, in a process of its own.

python ndif_server.py FOLDER PORT [--wrong]

Jobs are handed in at /request and asked for at /response/ID; what they saved is fetched at /result/ID. As the real one
it has none of this project's code: ``debug`` cannot be imported here. With --wrong, every second job finds other
weights. Every seventh answer is a 503, as of a server that is busy.
"""

from __future__ import annotations

import io
import itertools
import sys
import traceback
import uuid

import anyio._backends._asyncio  # noqa: F401  (before nnsight gives every object a method ``save``)
import torch
import uvicorn
import zstandard
from fastapi import FastAPI, Form, HTTPException, Response, UploadFile
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import dec, inc

sys.modules["debug"] = None  # type: ignore[assignment]  (so that importing it raises)
app, results, answers = FastAPI(), {}, itertools.count(1)
folder, port, *options = sys.argv[1:]
model = TransformersModel(folder, task="text-generation", dispatch=True)
jobs = itertools.count()


@app.post("/request")
def request(blob: UploadFile, data: str = Form()) -> Response:
    job, asked = uuid.uuid4().hex, RequestModel.model_validate_json(data)
    if next(jobs) % 2 and "--wrong" in options:
        model._module.lm_head.weight.data *= 1.01
    try:
        tracer = RequestModel.deserialize(blob.file.read(), model._remoteable_persistent_objects(), asked.compress)
        before = dict(tracer.info.frame.f_locals)
        inc()
        try:
            tracer.execute(tracer.info.code)
        finally:
            dec()
        after = tracer.info.frame.f_locals
        saved = {name: value for name, value in after.items() if name not in before or value is not before[name]}
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        content = buffer.getvalue()
        results[job] = zstandard.ZstdCompressor().compress(content) if asked.compress else content
    except Exception as error:
        traceback.print_exc()
        results[job] = f"{type(error).__name__}: {error}"
    return told(job, Status.RECEIVED)


@app.get("/response/{job}")
def response(job: str) -> Response:
    if not next(answers) % 7:
        raise HTTPException(503, "busy")
    if isinstance(found := results[job], str):
        return told(job, Status.ERROR, description=found)
    return told(job, Status.COMPLETED, data=f"http://127.0.0.1:{port}/result/{job}")


@app.get("/result/{job}")
def result(job: str) -> Response:
    return Response(results.pop(job), media_type="application/octet-stream")


@app.get("/health")
def health() -> str:
    return "OK"


def told(job: str, status: Status, description: str = "", data: str | None = None) -> Response:
    model = ResponseModel(id=job, status=status, description=description, data=data)
    return Response(model.model_dump_json(), media_type="application/json")


uvicorn.run(app, port=int(port), log_level="warning")

"""Asks a serving process in the Open Inference Protocol, with the client that NVIDIA publishes for it."""

import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

address, token = sys.argv[1:]
client = triton.InferenceServerClient(address)
bearer = {"authorization": f"Bearer {token}"}


def refused(call, code):
    try:
        call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{code}", (error.status(), error.message())
        return error.message()
    raise AssertionError(f"{code} was expected")


def texts(name, values):
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=np.object_))
    return tensor


def numbers(name, values, datatype, kind):
    tensor = triton.InferInput(name, [len(values)], datatype)
    tensor.set_data_from_numpy(np.array(values, dtype=kind))
    return tensor


refused(lambda: client.is_server_live(), "UNAUTHENTICATED")
assert client.is_server_live(headers=bearer) and client.is_server_ready(headers=bearer)
assert client.is_model_ready("load", headers=bearer) and client.is_model_ready("load", "1", headers=bearer)
assert not client.is_model_ready("load", "2", headers=bearer) and not client.is_model_ready("other", headers=bearer)
assert client.get_server_metadata(headers=bearer).name == "foreshard"
metadata = client.get_model_metadata("load", headers=bearer)
assert list(metadata.versions) == ["1"], metadata
shape = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs}
assert shape["quantiles"] == ("FP64", [-1, -1, -1]) and shape["fallback"] == ("BYTES", [-1]), shape
assert [tensor.name for tensor in metadata.inputs][0] == "shards"

shards = ["b", "a", "stranger", "b"]
answer = client.infer(
    "load",
    [
        texts("shards", shards),
        texts("metric", ["io_ops"]),
        texts("product", ["next_hours"]),
        numbers("levels", [0.1, 0.5, 0.9], "FP32", np.float32),
        numbers("steps", [12], "INT64", np.int64),
    ],
    request_id="7",
    headers=bearer,
)
quantiles = answer.as_numpy("quantiles")
assert quantiles.shape == (4, 12, 3) and quantiles.dtype == np.float64, quantiles.shape
# The versions of these tests forecast the last value, with a width of two.
assert np.allclose(quantiles[1, :, 1], 990.0) and np.allclose(quantiles[0, :, 1], 490.0), quantiles[:, 0, 1]
assert np.array_equal(quantiles[0], quantiles[3]) and (np.diff(quantiles, axis=2) >= 0).all()
assert np.allclose(quantiles[1, :, 2] - quantiles[1, :, 1], 0.8, atol=1e-3)
assert np.allclose(answer.as_numpy("levels"), [0.1, 0.5, 0.9])
times = answer.as_numpy("times")
assert times.shape == (12,) and (np.diff(times) == 300_000).all() and times[0] == 100 * 300_000, times
assert [code.decode() for code in answer.as_numpy("fallback")] == ["", "", "unknown_series", ""]
seen = answer.as_numpy("last_observed")
assert seen[1] == 99 * 300_000 and seen[0] == 99 * 300_000 and seen[2] == -1, seen
response = answer.get_response()
assert (response.id, response.model_name, response.model_version) == ("7", "load", "1")

only = client.infer("load", [texts("shards", ["a"])], outputs=[triton.InferRequestedOutput("times")], headers=bearer)
assert only.as_numpy("quantiles") is None and len(only.as_numpy("times")) == 96


def ask(*inputs, model="load", version="", headers=bearer):
    return lambda: client.infer(model, list(inputs), model_version=version, headers=headers)


a = texts("shards", ["a"])
refused(ask(a, headers=None), "UNAUTHENTICATED")
assert "other" in refused(ask(a, model="other"), "NOT_FOUND")
assert "version 1 does" in refused(ask(a, version="2"), "NOT_FOUND")
assert "stranger" in refused(ask(texts("shards", ["stranger"])), "NOT_FOUND")
assert "cpu_util" in refused(ask(a, texts("metric", ["cpu"])), "INVALID_ARGUMENT")
assert "from 1 to 96" in refused(ask(a, numbers("steps", [97], "INT64", np.int64)), "INVALID_ARGUMENT")
refused(ask(a, numbers("levels", [0.9999], "FP64", np.float64)), "INVALID_ARGUMENT")
print("all well")

"""Measures the fused LSTM, PyTorch and ONNX Runtime in alternation; started by `scripts/bench-peers lstm`."""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

STEPS, INPUTS, UNITS, LEVELS, TARGETS = 288, 12, 64, 9, 48
# One window's arithmetic in MFLOP, multiplications and additions, head included, activations not.
HEAD = 2 * UNITS * LEVELS * TARGETS / 1e6


def mflop(kind, layers):
    def layer(inputs):
        return STEPS * 2 * (inputs + UNITS) * 4 * UNITS / 1e6

    forward = layer(INPUTS) + (layers - 1) * layer(UNITS)
    if kind == "infer":
        return forward + HEAD
    # Gradients of weights cost as much as the way forward; so do those of states, but the first layer's inputs need none.
    return 3 * forward - STEPS * 2 * INPUTS * 4 * UNITS / 1e6 + 3 * HEAD


class Ours:
    def __init__(self, binary, clock):
        self.clock = clock
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def times(self, kind, layers, batch, threads, repeats):
        self.process.stdin.write(f"{kind} {layers} {batch} {threads} {repeats} {self.clock}\n")
        self.process.stdin.flush()
        return [float(t) for t in self.process.stdout.readline().split()]


class Network(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.lstm = torch.nn.LSTM(INPUTS, UNITS, layers)
        self.head = torch.nn.Linear(UNITS, LEVELS * TARGETS)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.head(states[-1])


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now = CLOCKS["wall"]


def timed(call, repeats):
    times = []
    for _ in range(repeats):
        start = now()
        call()
        times.append((now() - start) * 1e3)
    return times


class PyTorch:
    name = "PyTorch"

    def __init__(self):
        self.cache = {}

    def times(self, kind, layers, batch, threads, repeats):
        torch.set_num_threads(threads)
        key = (kind, layers, batch)
        if key not in self.cache:
            network = Network(layers)
            x = torch.randn(STEPS, batch, INPUTS)
            if kind == "train":
                target = torch.randn(batch, 1, TARGETS)
                levels = torch.linspace(0.1, 0.9, LEVELS).reshape(1, LEVELS, 1)
                optimiser = torch.optim.AdamW(network.parameters())

                def call():
                    optimiser.zero_grad()
                    error = target - network(x).reshape(batch, LEVELS, TARGETS)
                    loss = torch.maximum(levels * error, (levels - 1) * error).mean()
                    loss.backward()
                    optimiser.step()
            else:
                network.eval()

                def call():
                    with torch.inference_mode():
                        network(x)

            self.cache[key] = call
            timed(call, 2)
        return timed(self.cache[key], repeats)


class OnnxRuntime:
    def __init__(self, folder, int8):
        self.name = "ORT int8" if int8 else "ORT"
        self.folder, self.int8, self.cache = folder, int8, {}

    def model(self, layers):
        random = numpy.random.default_rng(1)
        nodes, constants, given = [], [], "x"
        for layer in range(layers):
            inputs = INPUTS if layer == 0 else UNITS
            for name, shape in ("W", (1, 4 * UNITS, inputs)), ("R", (1, 4 * UNITS, UNITS)), ("B", (1, 8 * UNITS)):
                values = random.uniform(-0.125, 0.125, shape).astype(numpy.float32)
                constants.append(numpy_helper.from_array(values, f"{name}{layer}"))
            names = [given, f"W{layer}", f"R{layer}", f"B{layer}"]
            nodes.append(helper.make_node("LSTM", names, [f"all{layer}", f"last{layer}"], hidden_size=UNITS))
            constants.append(numpy_helper.from_array(numpy.array([1], dtype=numpy.int64), f"axis{layer}"))
            nodes.append(helper.make_node("Squeeze", [f"all{layer}", f"axis{layer}"], [f"states{layer}"]))
            given = f"states{layer}"
        top = layers - 1
        constants.append(numpy_helper.from_array(numpy.array([0], dtype=numpy.int64), "front"))
        nodes.append(helper.make_node("Squeeze", [f"last{top}", "front"], ["state"]))
        head = random.uniform(-0.125, 0.125, (UNITS, LEVELS * TARGETS)).astype(numpy.float32)
        constants.append(numpy_helper.from_array(head, "head"))
        nodes.append(helper.make_node("MatMul", ["state", "head"], ["y"]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, "batch", INPUTS])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", LEVELS * TARGETS])
        graph = helper.make_graph(nodes, "lstm", [x], [y], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path = os.path.join(self.folder, f"lstm{layers}.onnx")
        onnx.save(model, path)
        if self.int8:
            quantised = os.path.join(self.folder, f"lstm{layers}.int8.onnx")
            quantize_dynamic(path, quantised, weight_type=QuantType.QInt8)
            return quantised
        return path

    def times(self, kind, layers, batch, threads, repeats):
        if kind == "train":
            return []
        key = (layers, threads)
        if key not in self.cache:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            self.cache[key] = onnxruntime.InferenceSession(self.model(layers), options, ["CPUExecutionProvider"])
        x = {"x": numpy.random.default_rng(2).standard_normal((STEPS, batch, INPUTS), dtype=numpy.float32)}
        session = self.cache[key]
        session.run(None, x)
        return timed(lambda: session.run(None, x), repeats)


def product():
    """GFLOP/s of one core in a large product of PyTorch's: what a good general kernel reaches here."""
    torch.set_num_threads(1)
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return 2 * 512**3 / (min(timed(lambda: torch.mm(a, b), 60)) * 1e6)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, choices=[1, 2], help="only this many layers")
    parser.add_argument("--quick", action="store_true", help="one thread and small batches only")
    parser.add_argument("--clock", choices=CLOCKS, default="wall",
                        help="cpu: what the processes computed, one thread only, for a machine that others use too")
    arguments = parser.parse_args()
    global now
    now = CLOCKS[arguments.clock]
    cases = [("train", b, t) for b in (64, 256) for t in (1, 2)]
    cases += [("infer", 1, 1)] + [("infer", b, t) for b in (32, 1000) for t in (1, 2)]
    if arguments.quick:
        cases = [("train", 64, 1), ("infer", 1, 1), ("infer", 32, 1)]
    if arguments.clock == "cpu":
        cases = [case for case in cases if case[2] == 1]
    layers_of = [arguments.layers] if arguments.layers else [1, 2]
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{platform.machine()} {cpu}, {os.cpu_count()} cores; torch {torch.__version__}, "
          f"onnxruntime {onnxruntime.__version__}; instructions {os.environ.get('FORESHARD_SIMD') or 'chosen at run time'}")
    reached = product()
    print(f"one core reaches {reached:.0f} GFLOP/s in a product of 512^3, which gives the floor; medians in ms of {arguments.clock} time; ratio = median over rounds of (rival / ours)")
    print(f"{'case':<24}{'ours':>9}{'floor':>9}{'floor/ours':>11}   rivals: ms (ratio)   load")
    with tempfile.TemporaryDirectory() as folder:
        ours, rivals = Ours(arguments.binary, arguments.clock), [PyTorch(), OnnxRuntime(folder, False), OnnxRuntime(folder, True)]
        for layers in layers_of:
            for kind, batch, threads in cases:
                repeats = 50 if batch == 1 else 10 if (kind, batch) == ("infer", 32) else 2
                case = (kind, layers, batch, threads)
                ours.times(*case, 2)
                own, theirs = [], {rival.name: [] for rival in rivals}
                for _ in range(arguments.rounds):
                    own.append(statistics.median(ours.times(*case, repeats)))
                    for rival in rivals:
                        times = rival.times(*case, repeats)
                        if times:
                            theirs[rival.name].append(statistics.median(times))
                median = statistics.median(own)
                floor = mflop(kind, layers) * batch / reached / threads
                rows = [
                    f"{name} {statistics.median(t):.3g} ({statistics.median([a / b for a, b in zip(t, own)]):.2f})"
                    for name, t in theirs.items() if t
                ]
                label = f"{kind} L{layers} batch {batch} {threads}t"
                print(f"{label:<24}{median:>9.3f}{floor:>9.3f}{100 * floor / median:>10.0f}%   {', '.join(rows)}"
                      f"   load {os.getloadavg()[0]:.1f}", flush=True)
        ours.process.stdin.close()
        ours.process.wait()


if __name__ == "__main__":
    main()

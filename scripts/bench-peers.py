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
# The shipped network: inputs of a patch, days, inputs of an origin and of a step, anchors, spreads, units of LSTM and decoder;
# steps of a training step (a quarter of the next day's) and of an answer.
PATCH, DAYS, ORIGIN, STEP, ANCHORS, SPREADS, ENCODER, DECODER = 99, 14, 24, 28, 16, 8, 32, 64
TRAINED, ANSWERED, OUTWARD, MEMBERS = 24, 96, 12, 3
# One window's arithmetic in MFLOP, multiplications and additions, head included, activations not.
HEAD = 2 * UNITS * LEVELS * TARGETS / 1e6


def shipped_mflop(kind):
    """Products of one origin: one member in training, all of them in an answer."""
    head = ANCHORS + SPREADS + 1 + OUTWARD
    encoder = DAYS * (PATCH * ENCODER + 2 * ENCODER * 4 * ENCODER) + 2 * ENCODER * DECODER
    step = STEP * DECODER + DECODER * DECODER + DECODER * head
    if kind == "infer":
        return MEMBERS * 2 * (encoder + ORIGIN * DECODER + ANSWERED * step) / 1e6
    # Gradients of weights cost as much as the way forward; so do those of what a layer was given, where that learns.
    given = DAYS * 2 * ENCODER * 4 * ENCODER + 2 * ENCODER * DECODER + TRAINED * (DECODER * DECODER + DECODER * head)
    return 2 * (2 * (encoder + ORIGIN * DECODER + TRAINED * step) + given) / 1e6


def mflop(kind, layers):
    if layers == "shipped":
        return shipped_mflop(kind)

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


class Member(torch.nn.Module):
    """One member of the shipped network, as in model/src/network/forward.rs; dropout by given masks."""

    def __init__(self):
        super().__init__()
        linear = torch.nn.Linear
        self.patch = linear(PATCH, ENCODER)
        self.lstm = torch.nn.LSTM(ENCODER, ENCODER)
        self.out = linear(2 * ENCODER, DECODER, bias=False)
        self.origin = linear(ORIGIN, DECODER)
        self.step = linear(STEP, DECODER, bias=False)
        self.hidden = linear(DECODER, DECODER)
        self.head = linear(DECODER, ANCHORS + SPREADS + 1 + OUTWARD)

    def forward(self, patches, origins, steps, anchors, spreads, patch_masks=None, masks=None):
        gelu = torch.nn.functional.gelu
        days = gelu(self.patch(patches), approximate="tanh")
        days = days if patch_masks is None else days * patch_masks
        _, (last, _) = self.lstm(days)
        whole = self.origin(origins) + self.out(torch.cat([last[0], days[-1]], 1))
        hidden = gelu(self.step(steps) + whole.unsqueeze(1), approximate="tanh")
        hidden = hidden if masks is None else hidden * masks
        hidden = hidden + gelu(self.hidden(hidden), approximate="tanh")
        scores = self.head(hidden)
        a, s, offset, rise = scores.split([ANCHORS, SPREADS, 1, OUTWARD], 2)
        spread = (torch.softmax(3 * s, 2) * spreads).sum(2, keepdim=True) + 0.01
        median = (torch.softmax(3 * a, 2) * anchors).sum(2, keepdim=True) + offset * spread
        down, up = torch.nn.functional.softplus(rise).split([OUTWARD // 2, OUTWARD // 2], 2)
        below = torch.flip(torch.cumsum(down, 2), [2])
        return torch.cat([median - below * spread, median, median + torch.cumsum(up, 2) * spread], 2)


class Shipped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.members = torch.nn.ModuleList([Member() for _ in range(MEMBERS)])

    def forward(self, *inputs):
        return sum(member(*inputs) for member in self.members) / MEMBERS


def shipped_inputs(batch, steps):
    sizes = (DAYS, batch, PATCH), (batch, ORIGIN), (batch, steps, STEP), (batch, steps, ANCHORS)
    return [torch.randn(size) for size in sizes] + [torch.rand(batch, steps, SPREADS)]


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
        if key not in self.cache and layers == "shipped":
            self.cache[key] = self.shipped(kind, batch)
            timed(self.cache[key], 2)
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


    @staticmethod
    def shipped(kind, batch):
        if kind == "infer":
            network, inputs = Shipped().eval(), shipped_inputs(batch, ANSWERED)

            def answer():
                with torch.inference_mode():
                    network(*inputs)

            return answer
        network, inputs = Member(), shipped_inputs(batch, TRAINED)
        mask = lambda *size: (torch.rand(size) > 0.3).float() / 0.7
        masks = mask(DAYS, batch, ENCODER), mask(batch, TRAINED, DECODER)
        target = torch.randn(batch, TRAINED, 1)
        levels = torch.tensor([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
        counts = torch.where((levels > 0.09) & (levels < 0.91), 1.0, 0.5)
        optimiser = torch.optim.AdamW(network.parameters())

        def step():
            optimiser.zero_grad()
            error = target - network(*inputs, *masks)
            loss = (torch.maximum(levels * error, (levels - 1) * error) * counts).mean()
            loss.backward()
            optimiser.step()

        return step


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
        return self.quantised(path) if self.int8 else path

    def shipped(self):
        path = os.path.join(self.folder, "shipped.onnx")
        names = ["patches", "origins", "steps", "anchors", "spreads"]
        axes = {"patches": {1: "batch"}} | {name: {0: "batch"} for name in names[1:]}
        inputs = tuple(shipped_inputs(2, ANSWERED))
        torch.onnx.export(Shipped().eval(), inputs, path, input_names=names, dynamic_axes=axes, dynamo=False, opset_version=20)
        return self.quantised(path) if self.int8 else path

    def quantised(self, path):
        quantised = path.replace(".onnx", ".int8.onnx")
        quantize_dynamic(path, quantised, weight_type=QuantType.QInt8)
        return quantised

    def times(self, kind, layers, batch, threads, repeats):
        if kind == "train":
            return []
        key = (layers, threads)
        if layers == "shipped":
            names = "patches", "origins", "steps", "anchors", "spreads"
            x = dict(zip(names, (value.numpy() for value in shipped_inputs(batch, ANSWERED))))
        else:
            x = {"x": numpy.random.default_rng(2).standard_normal((STEPS, batch, INPUTS), dtype=numpy.float32)}
        if key not in self.cache:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            model = self.shipped() if layers == "shipped" else self.model(layers)
            self.cache[key] = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
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
    parser.add_argument("--layers", choices=["1", "2", "shipped"], help="only this many layers, or only the shipped network")
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
    layers_of = [arguments.layers] if arguments.layers else ["1", "2", "shipped"]
    layers_of = [int(layers) if layers.isdigit() else layers for layers in layers_of]
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
                label = f"{kind} {layers if layers == 'shipped' else f'L{layers}'} batch {batch} {threads}t"
                print(f"{label:<24}{median:>9.3f}{floor:>9.3f}{100 * floor / median:>10.0f}%   {', '.join(rows)}"
                      f"   load {os.getloadavg()[0]:.1f}", flush=True)
        ours.process.stdin.close()
        ours.process.wait()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""PyTorch's side of the benchmark: one measurement in one process, one JSON object on stdout."""

import argparse
import json
import resource
import statistics
import sys
import time

sys.dont_write_bytecode = True

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import torch_losses as losses  # noqa: E402
from torch_models import MODELS  # noqa: E402

WARM_UP = 3
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Stage maps of resnet8x4 and resnet32x4 at 32x32, both the same, and their pooled vector.
STAGES = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
STEM, EMBEDDING = (32, 32, 32), 256
# RepDistiller's weights of cross-entropy, KD and the method's own loss.
WEIGHTS = {"kd": (0.1, 0.9, 0.0), "at": (1.0, 0.0, 1000.0), "crd": (1.0, 0.0, 0.8)}


class Laps:
    """Milliseconds of named parts, one list entry a step, warm-up included."""

    def __init__(self):
        self.parts = {}

    def start(self):
        """Begins a step."""
        self.last = time.perf_counter()

    def lap(self, name):
        """Ends a part of the step."""
        now = time.perf_counter()
        self.parts.setdefault(name, []).append((now - self.last) * 1e3)
        self.last = now

    def medians(self):
        """Median of every part after the warm-up."""
        return {name: round(statistics.median(ms[WARM_UP:]), 4) for name, ms in self.parts.items()}

    def total(self):
        """Median of the whole step after the warm-up."""
        return statistics.median(sum(step) for step in list(zip(*self.parts.values()))[WARM_UP:])


def peak_rss_mb():
    """The largest resident size of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def build(name, args):
    """A network in the memory format asked for."""
    return MODELS[name](args.classes).to(memory_format=FORMATS[args.format])


def random_batch(args):
    """Images and labels, made once."""
    images = torch.randn(args.batch, *args.image).contiguous(memory_format=FORMATS[args.format])
    return images, torch.randint(args.classes, (args.batch,))


def sgd(parameters):
    """The published optimiser."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def context(args):
    """What every report says about its setting."""
    return {"batch": args.batch, "threads": args.threads, "steps": args.steps}


def origin(args):
    """Keys beyond the contract: library, memory format, size of the process before any work."""
    return {"torch": torch.__version__, "format": args.format, "start_rss_mb": args.start_rss_mb}


@torch.no_grad()
def eval_forward_ms(model, images, steps):
    """Median milliseconds of a forward pass in evaluation mode."""
    model.eval()
    laps = Laps()
    for _ in range(WARM_UP + steps):
        laps.start()
        model(images)
        laps.lap("eval")
    return laps.medians()["eval"]


def train_step(args):
    """Forward, cross-entropy, backward, SGD."""
    model = build(args.model, args).train()
    images, labels = random_batch(args)
    optimizer, laps = sgd(model.parameters()), Laps()
    for _ in range(WARM_UP + args.steps):
        laps.start()
        loss = F.cross_entropy(model(images), labels)
        laps.lap("forward_ms")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        laps.lap("backward_ms")
        optimizer.step()
        laps.lap("optimizer_ms")
    del loss
    return {
        "model": args.model,
        **context(args),
        "images_per_second": round(args.batch / laps.total() * 1e3, 3),
        **laps.medians(),
        "eval_forward_ms": eval_forward_ms(model, images, args.steps),
    }


@torch.no_grad()
def settled_teacher(name, images, args):
    """A frozen teacher with the running statistics of one batch, so that no activation explodes."""
    teacher = build(name, args).train()
    for layer in teacher.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    teacher(images)
    return teacher.eval()


def method_loss(args, student, teacher, images):
    """The method's own loss as a function of both feature lists, and its trainable parameters."""
    if args.method == "at":
        return lambda f_s, f_t: sum(map(losses.at, f_s[1:-1], f_t[1:-1])), []
    if args.method == "crd":
        with torch.no_grad():
            dims = [net(images[:2], features=True)[0][-1].shape[1] for net in (student, teacher)]
        crd = losses.Crd(*dims, args.dim, args.rows, args.negatives)
        positive = torch.randperm(args.rows)[: args.batch]
        index = crd.contrast.sample(positive)
        return lambda f_s, f_t: crd(f_s[-1], f_t[-1], positive, index), list(crd.parameters())
    return None, []


def kd_step(args):
    """Teacher's forward pass, student's forward pass, losses, backward, SGD."""
    images, labels = random_batch(args)
    teacher = settled_teacher(args.teacher, images, args)
    student = build(args.student, args).train()
    own_loss, extra = method_loss(args, student, teacher, images)
    ce, kd, own = WEIGHTS[args.method]
    optimizer, laps = sgd([*student.parameters(), *extra]), Laps()
    for _ in range(WARM_UP + args.steps):
        laps.start()
        feats_s, logits_s = student(images, features=True)
        laps.lap("forward_ms")
        with torch.no_grad():
            feats_t, logits_t = teacher(images, features=True)
        laps.lap("teacher_ms")
        loss = ce * F.cross_entropy(logits_s, labels)
        if kd:
            loss = loss + kd * losses.kd(logits_s, logits_t)
        if own_loss:
            loss = loss + own * own_loss(feats_s, feats_t)
        laps.lap("loss_ms")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        laps.lap("backward_ms")
        optimizer.step()
        laps.lap("optimizer_ms")
    return {
        "teacher": args.teacher,
        "student": args.student,
        "method": args.method,
        **context(args),
        "images_per_second": round(args.batch / laps.total() * 1e3, 3),
        **laps.medians(),
    }


def random_maps(args, trainable, shapes=STAGES, relu=True):
    """One map a stage, not negative, as after a ReLU, or with both signs, as before it."""
    layout = FORMATS[args.format]
    maps = [torch.randn(args.batch, *s).contiguous(memory_format=layout) for s in shapes]
    return [(m.relu_() if relu else m).requires_grad_(trainable) for m in maps]


def map_case(args):
    """Losses of stage maps: (value, tensors that get a gradient, shape)."""
    f_s, f_t = random_maps(args, True), random_maps(args, False)
    last, middle = slice(2, 3), slice(1, 2)
    used = {"sp": last, "fitnet": middle}.get(args.loss, slice(0, 3))
    f_s, f_t, shape = f_s[used], f_t[used], {"maps": STAGES[used]}
    if args.loss in ("at", "nst", "sp"):
        function = getattr(losses, args.loss)
        return lambda: sum(map(function, f_s, f_t)), f_s, shape
    if args.loss == "fitnet":
        regressor = losses.ConvReg(f_s[0].shape, f_t[0].shape).to(memory_format=FORMATS[args.format])
        leaves = [*f_s, *regressor.parameters()]
        return lambda: F.mse_loss(regressor(f_s[0]), f_t[0]), leaves, shape
    parts = [losses.Vid(a.shape[1], b.shape[1], b.shape[1]) for a, b in zip(f_s, f_t)]
    parts = [part.to(memory_format=FORMATS[args.format]) for part in parts]
    leaves = [*f_s, *(p for part in parts for p in part.parameters())]
    return lambda: sum(part(a, b) for part, a, b in zip(parts, f_s, f_t)), leaves, shape


def stages_case(args):
    """Losses of several maps at once: (value, tensors that get a gradient, shape)."""
    shapes = {"fsp": [STEM, *STAGES], "ft": STAGES[2:], "reviewkd": [*STAGES, (EMBEDDING, 1, 1)]}
    shapes = shapes.get(args.loss, STAGES)
    relu_s, relu_t = args.loss not in ("ab", "ofd"), args.loss not in ("ab", "ofd", "reviewkd")
    f_s, f_t = random_maps(args, True, shapes, relu_s), random_maps(args, False, shapes, relu_t)
    channels = [shape[0] for shape in shapes]
    parts = {
        "ab": lambda: losses.activation_boundaries, "fsp": lambda: losses.fsp, "kdsvd": lambda: losses.kdsvd,
        "ft": lambda: losses.FactorTransfer(channels[0], channels[0]), "ofd": lambda: losses.Ofd(channels, channels),
        "reviewkd": lambda: losses.ReviewKd(channels, channels, [shape[1] for shape in shapes]),
    }
    part = parts[args.loss]()
    leaves = list(f_s)
    if isinstance(part, torch.nn.Module):
        part = part.to(memory_format=FORMATS[args.format])
        leaves += [p for p in part.parameters() if p.requires_grad]
    if args.loss == "ft":
        return lambda: part(f_s[0], f_t[0]), leaves, {"maps": shapes}
    return lambda: part(f_s, f_t), leaves, {"maps": shapes}


def logit_case(args):
    """Losses of logits: (value, tensors that get a gradient, shape)."""
    z_s = torch.randn(args.batch, args.classes, requires_grad=True)
    z_t, labels = torch.randn(args.batch, args.classes), torch.randint(args.classes, (args.batch,))
    call = {"kd": lambda: losses.kd(z_s, z_t), "dkd": lambda: losses.dkd(z_s, z_t, labels)}
    call["ce"] = lambda: F.cross_entropy(z_s, labels)
    call["label-smoothing"] = lambda: F.cross_entropy(z_s, labels, label_smoothing=0.1)
    return call[args.loss], [z_s], {"classes": args.classes}


def pooled_case(args):
    """Losses of pooled vectors: (value, tensors that get a gradient, shape)."""
    e_s = torch.randn(args.batch, EMBEDDING, requires_grad=True)
    e_t, shape = torch.randn(args.batch, EMBEDDING), {"embedding": EMBEDDING}
    if args.loss != "cc":
        function = getattr(losses, args.loss)
        return lambda: function(e_s, e_t), [e_s], shape
    heads = [torch.nn.Linear(EMBEDDING, args.dim) for _ in range(2)]
    leaves = [e_s, *(p for head in heads for p in head.parameters())]
    return lambda: losses.cc(heads[0](e_s), heads[1](e_t)), leaves, shape | {"dim": args.dim}


def sampling_ms(memory, positive, steps):
    """Median milliseconds of drawing a batch of contrast indices."""
    laps = Laps()
    for _ in range(WARM_UP + steps):
        laps.start()
        memory.sample(positive)
        laps.lap("sampling")
    return laps.medians()["sampling"]


def crd_case(args):
    """CRD with indices made beforehand: (value, tensors that get a gradient, shape)."""
    crd = losses.Crd(EMBEDDING, EMBEDDING, args.dim, args.rows, args.negatives)
    e_s = torch.randn(args.batch, EMBEDDING, requires_grad=True)
    e_t, positive = torch.randn(args.batch, EMBEDDING), torch.randperm(args.rows)[: args.batch]
    index = crd.contrast.sample(positive)
    shape = {"embedding": EMBEDDING, "dim": args.dim, "rows": args.rows}
    shape |= {"negatives": args.negatives}
    shape |= {"sampling_ms": sampling_ms(crd.contrast, positive, args.steps)}
    return lambda: crd(e_s, e_t, positive, index), [e_s, *crd.parameters()], shape


CASES = {"crd": crd_case}
CASES |= dict.fromkeys(("at", "nst", "sp", "fitnet", "vid"), map_case)
CASES |= dict.fromkeys(("ab", "ft", "fsp", "kdsvd", "ofd", "reviewkd"), stages_case)
CASES |= dict.fromkeys(("kd", "dkd", "ce", "label-smoothing"), logit_case)
CASES |= dict.fromkeys(("rkd", "pkt", "cc"), pooled_case)


def loss_step(args):
    """Value and gradient of one loss."""
    call, leaves, shape = CASES[args.loss](args)
    laps = Laps()
    for _ in range(WARM_UP + args.steps):
        for leaf in leaves:
            leaf.grad = None
        laps.start()
        call().backward()
        laps.lap("forward_backward_ms")
    return {"loss": args.loss, **context(args), **shape, **laps.medians()}


def check(path):
    """Prints every parameter count, compared with a list of architectures where one is given."""
    expected = {}
    if path:
        with open(path, encoding="utf-8") as file:
            expected = json.load(file)["repdistiller"]
    wrong = 0
    for name, make in MODELS.items():
        count = sum(p.numel() for p in make(100).parameters())
        want = expected.get(name, {}).get("params")
        wrong += bool(path) and count != want
        verdict = "" if not path else "ok" if count == want else f"expected {want}"
        print(f"{name:12} {count:>10} {verdict}".rstrip())
    return 1 if wrong else 0


def positive_int(text):
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {value}")
    return value


def image_shape(text):
    """`3x32x32` as a tuple."""
    shape = tuple(map(positive_int, text.split("x")))
    if len(shape) != 3:
        raise argparse.ArgumentTypeError(f"expected CxHxW, found {text}")
    return shape


def common_options(parser, steps):
    """Options that all measurements share."""
    parser.add_argument("--batch", type=positive_int, default=64)
    parser.add_argument("--classes", type=positive_int, default=100)
    parser.add_argument("--steps", type=positive_int, default=steps, help="timed steps after 3 of warm-up")
    parser.add_argument("--threads", type=positive_int, default=2)
    parser.add_argument("--format", choices=FORMATS, default="contiguous", help="memory format")


def crd_options(parser):
    """Options of the memory banks."""
    parser.add_argument("--rows", type=positive_int, default=50000, help="rows of a memory bank")
    parser.add_argument("--negatives", type=positive_int, default=16384)
    parser.add_argument("--dim", type=positive_int, default=128, help="width of the embedding heads")


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", nargs="?", const="", metavar="ARCHITECTURES_JSON",
                        help="print parameter counts, compare them with a file, and stop")
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train-step", help=train_step.__doc__, description=(
        "Medians of a training step. forward_ms holds the cross-entropy, backward_ms zero_grad."))
    train.add_argument("--model", choices=MODELS, required=True)
    distil = commands.add_parser("kd-step", help=kd_step.__doc__, description=(
        "Medians of a distillation step. images_per_second counts the whole step; teacher_ms "
        "(evaluation mode, no gradient), forward_ms (the student's), loss_ms, backward_ms (with "
        "zero_grad) and optimizer_ms are its parts. CRD's indices are drawn before, as by a loader."))
    distil.add_argument("--teacher", choices=MODELS, required=True)
    distil.add_argument("--student", choices=MODELS, required=True)
    distil.add_argument("--method", choices=WEIGHTS, default="kd")
    loss = commands.add_parser("loss", help=loss_step.__doc__, description=(
        "Median of value plus gradient of the student's input and of the loss's own parameters, "
        "on random tensors of resnet8x4's shapes at 32x32. CRD's forward_backward_ms holds the "
        "update of the banks but not the draw of indices, which is sampling_ms."))
    loss.add_argument("--loss", choices=CASES, required=True)
    for command, steps in ((train, 20), (distil, 20), (loss, 10)):
        common_options(command, steps)
    for command in (train, distil):
        command.add_argument("--image", type=image_shape, default=(3, 32, 32), metavar="CxHxW")
    for command in (distil, loss):
        crd_options(command)
    args = parser.parse_args()
    if args.check is None and args.command is None:
        parser.error("expected a command or --check")
    return args


def main():
    """Runs one measurement and prints it."""
    args = parse()
    if args.check is not None:
        return check(args.check)
    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    args.start_rss_mb = peak_rss_mb()
    measure = {"train-step": train_step, "kd-step": kd_step, "loss": loss_step}[args.command]
    result = measure(args)
    print(json.dumps(result | {"peak_rss_mb": peak_rss_mb()} | origin(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

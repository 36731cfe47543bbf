"""Train Mobile-Former 26M on handwritten digits: the checkpoint that `make demo` deploys.

    python examples/train_digits.py

takes a few minutes on two cores. It writes examples/checkpoints/mobile_former_26m_digits.safetensors, in
float16, and a model card beside it with the accuracy of that file on the held-out images. These are looked
at once, after training: nothing is chosen by them.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from pathlib import Path

import torch
from digits import HELD_OUT, write_digits
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mf_deploy.data import open_images
from mf_deploy.models import get_spec, load_model
from mf_deploy.preprocessing import Preprocessing

MODEL = "mobile_former_26m"
CLASSES = [str(digit) for digit in range(10)]
PREPROCESSING = Preprocessing(input_size=32, crop_fraction=1)
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
AVERAGED_EPOCHS = 2  # time constant of the moving average of the weights

CARD = """\
# Mobile-Former 26M on handwritten digits

`{name}`: {parameters:,} parameters in float16, {megabytes:.1f} MB, sha256 `{sha256}`.

- **Held-out top-1: {percent:.1f} %** ({correct} of {total} scans), measured on this float16 file.
- Model: `{model}` with 10 classes, input 32 × 32 RGB, normalised as for ImageNet.
- Data: the 1,797 scans of scikit-learn's digits; {train:,} trained on, {held_out} held out, by class, seed 0.
- Training: `python examples/train_digits.py --epochs {epochs}`, {minutes:.0f} minutes on {threads} core(s).
- Recipe: AdamW, one cycle up to {lr:g}, weight decay {decay:g}, label smoothing {smoothing:g}, batches of
  {batch}, averaged weights; random turns, scales and shifts. The held-out scans chose nothing.

It exists to show mf-deploy at work without any download. These are easy pictures: 8 × 8 pixels, cut out and
centred by the data's authors, with the same writers on both sides of the split. It reads nothing else.

**Data:** Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, doi 10.24432/C50P49, licence CC BY 4.0; the part of it that scikit-learn bundles (1,797 scans of
its test set). Here it is split anew, saved as PNG and enlarged to 32 × 32 pixels. **Weights:** Apache-2.0,
as mf-deploy.
"""


def train(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train on (N, 1, S, S) pictures in [0, 1]; the model with the moving average of the weights."""
    model = get_spec(MODEL).build(len(CLASSES)).train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps_per_epoch, pct_start=0.1
    )
    decay = 1 - 1 / (AVERAGED_EPOCHS * steps_per_epoch)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images))[: steps_per_epoch * BATCH_SIZE].split(BATCH_SIZE):
            logits = model(normalized(augmented(images[chosen])))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            update_average_(average, model, decay)
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1}: loss {total / steps_per_epoch:.3f}", flush=True)
    return average


def augmented(images: Tensor) -> Tensor:
    """Each picture turned by up to 10 degrees, scaled by up to 10 % and shifted by up to 6 % of its side."""
    count = len(images)
    angle, scale, *shift = (torch.rand(4, count) * 2 - 1) * torch.tensor([[10.0], [0.1], [0.12], [0.12]])
    cos, sin = torch.cos(angle * math.pi / 180) * (1 + scale), torch.sin(angle * math.pi / 180) * (1 + scale)
    rows = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def normalized(images: Tensor) -> Tensor:
    """(N, 1, S, S) in [0, 1] to the network's (N, 3, S, S), as ``Preprocessing.normalize``."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return (images - mean) / std


@torch.no_grad()
def update_average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average a step towards the model, the statistics of batch normalisation included."""
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)


def save(model: nn.Module, path: Path) -> None:
    """Write the weights in float16, with the class names."""
    state = {key: value.half() for key, value in model.state_dict().items() if value.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"classes": json.dumps(CLASSES)})


@torch.no_grad()
def count_correct(checkpoint: Path, folder: Path) -> int:
    """How many images of ``folder`` the model in the file ``checkpoint`` gets right."""
    model = load_model(MODEL, checkpoint)
    correct = 0
    for batch in open_images(folder).bind(CLASSES, len(CLASSES)).batches(PREPROCESSING, 100):
        logits = model(torch.from_numpy(PREPROCESSING.normalize(batch.pictures)))
        correct += int((logits.argmax(dim=1).numpy() == batch.labels).sum())
    return correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--data", type=Path, default=Path("runs/digits"), help="where the PNG files go")
    parser.add_argument("--out", type=Path, default=Path("examples/checkpoints"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    started = time.monotonic()
    train_folder, held_out_folder = write_digits(arguments.data)
    source = open_images(train_folder)
    everything = next(source.bind(CLASSES, len(CLASSES)).batches(PREPROCESSING, len(source)))
    images = torch.from_numpy(everything.pictures[..., 0]).unsqueeze(1) / 255
    model = train(images, torch.from_numpy(everything.labels), arguments.epochs)

    checkpoint = arguments.out / f"{MODEL}_digits.safetensors"
    save(model, checkpoint)
    correct = count_correct(checkpoint, held_out_folder)
    card = CARD.format(
        name=checkpoint.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        megabytes=checkpoint.stat().st_size / 1e6,
        sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        model=MODEL,
        percent=100 * correct / HELD_OUT,
        correct=correct,
        total=HELD_OUT,
        train=len(source),
        held_out=HELD_OUT,
        epochs=arguments.epochs,
        minutes=(time.monotonic() - started) / 60,
        threads=torch.get_num_threads(),
        lr=PEAK_LEARNING_RATE,
        decay=WEIGHT_DECAY,
        smoothing=LABEL_SMOOTHING,
        batch=BATCH_SIZE,
    )
    checkpoint.with_suffix(".md").write_text(card, encoding="utf-8")
    print(f"{checkpoint}: {correct} of {HELD_OUT} held-out images right")


if __name__ == "__main__":
    main()

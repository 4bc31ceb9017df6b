"""Train a timm model on scikit-learn's digits, as real training scripts do.

Mixed precision with a gradient scaler, gradient accumulation, a moving average of the weights,
compilation, checkpoints, resuming, several processes:

    python docs/examples/train.py --vcreg blocks
    torchrun --nproc-per-node 2 docs/examples/train.py --vcreg blocks --sync

VCReg is the one statement that is marked. Everything else would be there without it, too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vcreg_fx


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnext_atto", help="of timm")
    parser.add_argument("--vcreg", metavar="RULE", help="insert VCReg by this rule: blocks")
    parser.add_argument("--sync", action="store_true", help="statistics over all processes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="stop every epoch after so many")
    parser.add_argument("--batch", type=int, default=32, help="of each process")
    parser.add_argument("--accumulate", type=int, default=2, help="batches a step")
    parser.add_argument("--amp", choices=["none", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--compile", metavar="BACKEND", help="inductor, aot_eager, …")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train, and write a checkpoint after every epoch."""
    args = arguments()
    world, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)

    model = timm.create_model(args.model, num_classes=10).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "float16")
    if args.vcreg:  # the one statement for VCReg
        vcreg_fx.set_loss_scale(
            vcreg_fx.insert(model, args.vcreg, sync=args.sync), scaler, args.accumulate
        )
    average = ModelEmaV3(model, decay=0.99)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    parts["scaler"] = scaler
    start = load(args.checkpoint, parts, device) if args.resume else 0

    trained = DistributedDataParallel(model) if world > 1 else model
    if args.compile:
        trained = torch.compile(trained, backend=args.compile)
    images, labels, held_out = digits()
    for epoch in range(start, args.epochs):
        trained.train()
        for number, mine in enumerate(batches(~held_out, epoch, args, world), start=1):
            with torch.autocast(device.type, dtype_of(args.amp), enabled=args.amp != "none"):
                loss = F.cross_entropy(trained(images[mine].to(device)), labels[mine].to(device))
            scaler.scale(loss / args.accumulate).backward()
            if number % args.accumulate == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                average.update(model)
        schedule.step()
        if world == 1 or dist.get_rank() == 0:
            accuracy = validate(average.module, images[held_out].to(device), labels[held_out])
            penalty = vcreg_fx.metrics(model).get("vcreg/penalty", 0.0)
            print(f"epoch {epoch}: accuracy {accuracy:.4f}, VCReg penalty {penalty:.4f}")
            save(args.checkpoint, parts, epoch + 1)
    if world > 1:
        dist.destroy_process_group()


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return images of shape (n, 3, 32, 32), labels, and which examples are held out."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(8).sub(1)[:, None]
    images = F.interpolate(images, size=(32, 32)).expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(data.target), torch.arange(len(images)) % 5 == 0


def batches(usable: Tensor, epoch: int, args: argparse.Namespace, world: int) -> Iterator[Tensor]:
    """Yield this process's share of each batch of an epoch, in an order that the epoch fixes."""
    rank = dist.get_rank() if world > 1 else 0
    numbers = usable.nonzero()[:, 0]
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(epoch))
    together = args.batch * world
    count = len(numbers) // together // args.accumulate * args.accumulate
    if args.steps is not None:
        count = min(count, args.steps * args.accumulate)
    for batch in numbers[order].split(together)[:count]:
        yield batch[rank::world]


def dtype_of(name: str) -> torch.dtype:
    """Return the type that autocast computes in."""
    return torch.float16 if name == "float16" else torch.bfloat16


def validate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    model.eval()
    with torch.inference_mode():
        return float((model(images).argmax(1).cpu() == labels).float().mean())


def save(path: Path, parts: dict, epoch: int) -> None:
    """Write a checkpoint."""
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "epoch": epoch, "random": torch.get_rng_state()}, path)


def load(path: Path, parts: dict, device: torch.device) -> int:
    """Restore a checkpoint; return the epoch to go on with."""
    stored = torch.load(path, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    torch.set_rng_state(stored["random"].cpu())
    return stored["epoch"]


if __name__ == "__main__":
    main()

"""Features of a frozen tower, computed once and read from disk for every later epoch."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vision_lm.encoder import Features, ImageEncoder
from vision_lm.errors import ImageError
from vision_lm.folding import fold
from vision_lm.images import open_image


class FeatureCache:
    """A growing pair of float16 files, one row a picture, for one tower.

    Rows are appended by `add`; `get` reads any of them. The folder is named by the tower's weights and a row by its
    picture's path, size and time of change, so that neither another tower nor another picture gets these features.
    """

    def __init__(self, folder: Path, encoder: ImageEncoder, device: torch.device) -> None:
        self.folder = folder / fingerprint(encoder)
        # In float32, as it is: bfloat16 would cost a convolutional tower a tenth of its features.
        self.encoder = copy.deepcopy(encoder).to(device).eval()
        fold(self.encoder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, int] = {}
        index = self.folder / "index.txt"
        if index.exists():
            whole, _, _ = index.read_text(encoding="utf-8").rpartition("\n")  # the rest was cut off by a kill
            self.rows = {key: row for row, key in enumerate(whole.splitlines())}
        shapes = self.folder / "shapes.json"
        if shapes.exists():
            self.shapes = json.loads(shapes.read_text())
        else:
            size = encoder.config.image_size
            probe = self.encoder.encode(torch.zeros(1, 3, size, size))
            self.shapes = {"patches": list(probe.patches.shape[1:])}
            if probe.pooled is not None:
                self.shapes["pooled"] = list(probe.pooled.shape[1:])
            shapes.write_text(json.dumps(self.shapes))
        self._maps: dict[str, np.ndarray] = {}

    def add(self, paths: Sequence[Path], batch_size: int = 64) -> dict[Path, str]:
        """Encode every picture that is not here yet; returns those that cannot be read, and why."""
        keys = {path: _key(path) for path in paths}
        unseen = {key: path for path, key in keys.items() if key not in self.rows}
        if not unseen:
            return {}
        new = list(unseen)
        self._trim()
        reasons: dict[str, str] = {}
        pictures = _Pixels(list(unseen.values()), self.encoder)
        loader = torch.utils.data.DataLoader(pictures, batch_size=batch_size, num_workers=1)
        with (self.folder / "index.txt").open("a", encoding="utf-8") as index:
            progress = tqdm(total=len(new), desc="encoding pictures", unit="img")
            for pixels, places, faults in loader:
                reasons |= {
                    new[place]: fault for place, fault in zip(places.tolist(), faults, strict=True) if fault
                }
                progress.update(len(faults))
                readable = torch.tensor([not fault for fault in faults])
                places = places[readable]
                if not len(places):
                    continue
                features = self.encoder.encode(pixels[readable])
                self._append("patches", features.patches)
                if features.pooled is not None:
                    self._append("pooled", features.pooled)
                for place in places.tolist():  # the index last: a killed run leaves rows, never a wrong index
                    self.rows[new[place]] = len(self.rows)
                    index.write(new[place] + "\n")
                index.flush()
        self._maps = {}
        return {path: reasons[key] for path, key in keys.items() if key in reasons}

    def __contains__(self, path: Path) -> bool:
        return _key(path) in self.rows

    def get(self, paths: Sequence[Path]) -> Features:
        """Features of these pictures, float32 on the CPU: patches (I, N, Dv), pooled (I, P, E) or None.

        One that is not here is encoded for this once. Raises ImageError.
        """
        if all(path in self for path in paths):
            rows = [self.rows[_key(path)] for path in paths]
            pooled = self._read("pooled", rows) if "pooled" in self.shapes else None
            return Features(self._read("patches", rows), pooled)
        parts = [self.get([path]) if path in self else self._new(path) for path in paths]
        pooled_parts = [part.pooled for part in parts if part.pooled is not None]
        patches = torch.cat([part.patches for part in parts])
        return Features(patches, torch.cat(pooled_parts) if pooled_parts else None)

    def _new(self, path: Path) -> Features:
        found = self.encoder.encode(self.encoder.preprocess(open_image(path))[None])
        pooled = None if found.pooled is None else found.pooled.float().cpu().clone()
        return Features(found.patches.float().cpu().clone(), pooled)

    def _append(self, name: str, values: Tensor) -> None:
        with (self.folder / f"{name}.f16").open("ab") as file:
            file.write(values.float().cpu().numpy().astype(np.float16).tobytes())

    def _trim(self) -> None:
        """Cut rows that a killed run wrote without naming them, and a name that it wrote in part."""
        sizes = {f"{name}.f16": len(self.rows) * 2 * math.prod(shape) for name, shape in self.shapes.items()}
        sizes["index.txt"] = sum(len(key.encode()) + 1 for key in self.rows)
        for name, size in sizes.items():
            if (self.folder / name).exists():
                os.truncate(self.folder / name, size)

    def _read(self, name: str, rows: list[int]) -> Tensor:
        if name not in self._maps:
            shape = (-1, *self.shapes[name])
            self._maps[name] = np.memmap(self.folder / f"{name}.f16", dtype=np.float16, mode="r").reshape(
                shape
            )
        return torch.from_numpy(self._maps[name][rows].astype(np.float32))


def _key(path: Path) -> str:
    """Another one where the file has changed."""
    try:
        found = os.stat(path)
        return f"{found.st_mtime_ns} {found.st_size} {os.path.realpath(path)}"
    except OSError:  # why, it says who opens it
        return f"0 0 {os.path.realpath(path)}"


class _Pixels(torch.utils.data.Dataset):
    def __init__(self, paths: Sequence[Path], encoder: ImageEncoder) -> None:
        self.paths, self.encoder = paths, encoder

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[Tensor, int, str]:
        """Pixels, place, and what is wrong with the picture, if anything is."""
        size = self.encoder.config.image_size
        try:
            return self.encoder.preprocess(open_image(self.paths[place])), place, ""
        except ImageError as error:
            return torch.zeros(3, size, size), place, str(error)


def fingerprint(encoder: ImageEncoder) -> str:
    """A short hash of the tower's config and weights."""
    digest = hashlib.sha256(repr(encoder.config).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]

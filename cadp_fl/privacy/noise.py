"""The entropy source: AES-256 in counter mode, keyed by the operating system.

A reader of a release can recover the values drawn for dimensions that were not privatized, because the flow is
invertible. With a generator whose state can be recovered from its outputs (Mersenne Twister), that would reveal
the noise. So noise, permutations and Poisson samples all come from here.

`seeded` derives the key from a seed. That is reproducible, for simulations and tests, and protects nothing.
"""

import hashlib
import math
import os
from typing import Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cadp_fl.errors import PrivacyError

__all__ = ["NoiseSource"]


class NoiseSource:
    """A stream of cryptographic randomness, and a tree of independent streams below it.

    Attributes:
        kind: `entropy` if the key came from the operating system, `seeded` if from a seed.
    """

    def __init__(self, key: bytes, kind: Literal["entropy", "seeded"]) -> None:
        if len(key) != 32:
            raise ValueError(f"A key has 32 bytes. Found {len(key)}.")
        self.kind = kind
        self._key = key
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._children: set[bytes] = set()

    @classmethod
    def from_entropy(cls) -> "NoiseSource":
        """Return a stream keyed by the operating system's entropy."""
        return cls(os.urandom(32), "entropy")

    @classmethod
    def from_seed(cls, seed: int) -> "NoiseSource":
        """Return a reproducible stream. It protects nothing, and says so by its `kind`."""
        return cls(hashlib.blake2b(f"cadp-fl noise {seed}".encode(), digest_size=32).digest(), "seeded")

    def child(self, *labels: str | int) -> "NoiseSource":
        """Return the stream of a purpose, independent of this one and of every other child.

        Raises:
            PrivacyError: the labels were used before, so that the noise would repeat.
        """
        name = repr(labels).encode()
        if name in self._children:
            raise PrivacyError(f"Noise is used once. {labels} was drawn before; give every purpose its own labels.")
        self._children.add(name)
        return NoiseSource(hashlib.blake2b(name, key=self._key, digest_size=32).digest(), self.kind)

    def uniform(self, count: int) -> np.ndarray:
        """Return float64 (count,) from the open interval (0, 1): the middles of 2^52 equal parts."""
        return (self._integers(count) >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53

    def normal(self, shape: tuple[int, ...], std: float, like: torch.Tensor) -> torch.Tensor:
        """Return N(0, std^2) of a shape, with the device and dtype of `like`.

        The inverse of the normal distribution function at 52 uniform bits, in float64; it reaches 8.2 standard
        deviations.
        """
        uniform = torch.from_numpy(self.uniform(math.prod(shape))).to(like.device)
        normal: torch.Tensor = torch.special.ndtri(uniform) * std
        return normal.reshape(shape).to(like.dtype)

    def laplace(self, shape: tuple[int, ...], scale: float, like: torch.Tensor) -> torch.Tensor:
        """Return Laplace noise, of density exp(-|x| / scale) / (2 scale), with the device and dtype of `like`.

        The inverse of the distribution function in float64: one bit of a word is the sign, and the magnitude is
        -log of a uniform of the other 63; it reaches 44 scales, beyond which 2^-64 of the mass would lie.
        """
        words = self._integers(math.prod(shape))
        magnitude = -np.log(((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-63)
        signed = np.where(words & np.uint64(1), magnitude, -magnitude) * scale
        return torch.from_numpy(signed).to(like.device).reshape(shape).to(like.dtype)

    def poisson_sample(self, population: int, rate: float) -> np.ndarray:
        """Return the indices, int64, of a sample that holds each of `population` records with probability `rate`."""
        return np.flatnonzero(self.uniform(population) < rate)

    def permutation(self, count: int) -> np.ndarray:
        """Return a uniform permutation of 0 to count - 1, int64 (count,)."""
        return np.argsort(self._integers(count), kind="stable")

    def _integers(self, count: int) -> np.ndarray:
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

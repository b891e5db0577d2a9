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
from cadp_fl.privacy.rounded_normal import TAIL_BITS, nearest_integers, refined_integer

__all__ = ["NoiseSource"]


_COARSE = np.uint64(1 << 32)
"""Below it, the step from a word to the next could be felt in float32."""


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
        return (self.words(count) >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53

    def normal(self, shape: tuple[int, ...], std: float, like: torch.Tensor) -> torch.Tensor:
        """Return N(0, std^2) of a shape, with the device and dtype of `like`.

        The inverse of the normal distribution function in float64, of a sign and of a magnitude's probability. It
        reaches 18 standard deviations. Noise that ends too soon tells two records apart for certain wherever one of
        them could not have given what is seen: at 8 standard deviations, and an epsilon of 25, that is likelier than a
        delta of 1e-5. The low bits of floats can tell two apart as well: `rounded_normal` is the noise without them.
        """
        tail = torch.from_numpy(self.signed_tail(math.prod(shape))).to(like.device)
        normal: torch.Tensor = torch.special.ndtri(tail.abs() / 2).copysign(tail) * std
        return normal.reshape(shape).to(like.dtype)

    def laplace(self, shape: tuple[int, ...], scale: float, like: torch.Tensor) -> torch.Tensor:
        """Return Laplace noise, of density exp(-|x| / scale) / (2 scale), with the device and dtype of `like`.

        The inverse of the distribution function in float64: a sign, and minus the log of a magnitude's probability. It
        reaches 177 scales, so that at an epsilon of 100 it still ends where no more than e^-77 of the mass lies.
        """
        tail = torch.from_numpy(self.signed_tail(math.prod(shape))).to(like.device)
        return (tail.abs().log().copysign(tail) * scale).reshape(shape).to(like.dtype)

    def rounded_normal(self, shape: tuple[int, ...], std: float, like: torch.Tensor) -> torch.Tensor:
        """Return round(N(0, std^2)) of a shape, int64, with the device of `like`; its law is exact.

        A stream gives the same integers on every device. What float64 cannot decide, `refined_integer` does, with
        further bits from here wherever 63 are too few: so it reaches any number of standard deviations.

        Raises:
            ValueError: the standard deviation is negative, or above 2^30.
        """
        words = self.words(math.prod(shape))
        tail = _with_sign(_middle(words >> np.uint64(1)) * 2.0**-TAIL_BITS, words)
        integers, doubtful = nearest_integers(torch.from_numpy(tail).to(like.device), std)
        for index in doubtful.tolist():
            word = int(words[index])
            magnitude = refined_integer(word >> 1, std, lambda: int(self.words(1)[0]))
            integers[index] = magnitude if word & 1 else -magnitude
        return integers.reshape(shape)

    def signed_tail(self, count: int) -> np.ndarray:
        """Return the probability of a larger magnitude with a fair sign that is independent of it; float64 (count,).

        That is uniform in (0, 1], from 63 bits, and from 64 more, up to three times, wherever it is close to zero.
        """
        words = self.words(count)
        return _with_sign(self._fraction(words >> np.uint64(1), TAIL_BITS, further=3), words)

    def _fraction(self, words: np.ndarray, bits: int, *, further: int) -> np.ndarray:
        """Return words / 2^bits, in the middle of their step, float64; small ones with up to `further` words behind."""
        fractions = _middle(words)
        small = np.flatnonzero(words < _COARSE) if further else ()
        if len(small):
            fractions[small] = words[small] + self._fraction(self.words(len(small)), 64, further=further - 1)
        return fractions * 2.0**-bits

    def poisson_sample(self, population: int, rate: float) -> np.ndarray:
        """Return the indices, int64, of a sample that holds each of `population` records with probability `rate`."""
        return np.flatnonzero(self.uniform(population) < rate)

    def permutation(self, count: int) -> np.ndarray:
        """Return a uniform permutation of 0 to count - 1, int64 (count,)."""
        return np.argsort(self.words(count), kind="stable")

    def words(self, count: int) -> np.ndarray:
        """Return the next words of the stream, uniform uint64 (count,)."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")


def _middle(words: np.ndarray) -> np.ndarray:
    """Return the middles of words' steps, m + 1/2, float64."""
    return words.astype(np.float64) + 0.5


def _with_sign(tail: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return tail, negated in place wherever the word's last bit is 0."""
    np.negative(tail, out=tail, where=(words & np.uint64(1)) == 0)
    return tail

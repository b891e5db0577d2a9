"""Who is trained on and who is tested on at a real site: one function, by a rule that the site's ledger keeps.

A side depends on an id, or on the source's own test split, and on nothing else: not on a row's number, and not on what
a record shows or its class. So nobody changes sides when rows are added, sorted or exported again, and what was trained
on is never tested on later; `cadp_fl.site.register` notices a source whose own split was drawn again. Where a source
has neither ids nor a test split, nobody is tested on.
"""

import hashlib
import secrets

import numpy as np

from cadp_fl.config import SplitRule
from cadp_fl.data.fingerprint import arrays_of, sha256_of
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Source
from cadp_fl.errors import DataError

__all__ = ["rehearsal_rule", "sides", "split_rule"]


def split_rule(source: Source, test_fraction: float) -> SplitRule:
    """Return the rule that a new ledger keeps for a site with the records of a source.

    Args:
        test_fraction: share of the ids that is tested on, where the source has no test split; 0: nobody is, whatever
            the source has.

    Raises:
        DataError: some are to be tested on, and the source says neither whom nor who is who.
    """
    if test_fraction == 0:
        return SplitRule(rule="none")
    if source.test is not None:
        return SplitRule(rule="source")
    if source.train.patients is None and source.train.ids is None:
        raise DataError(
            "A real site holds records out by their ids, since a row's number changes with every export. These records "
            "have neither ids nor a test split; add patients, ids or a test split (to a MedMNIST file "
            "{train,val}_patients, {train,val}_ids, or test_images and test_labels; to the schema file of a table "
            "roles.patient, roles.id or roles.split), or test on nobody (test_fraction: 0, --test-fraction 0)."
        )
    by = "ids" if source.train.patients is None else "patients"
    return SplitRule(rule="hash", ids=by, fraction=test_fraction, salt=secrets.token_hex(16))


def rehearsal_rule(dealt: Source) -> SplitRule:
    """Return the rule of a rehearsal: these very public records, each on the side that it was dealt to."""
    return SplitRule(rule="rehearsal", sha256=_sha256(dealt))


def sides(source: Source, rule: SplitRule) -> SiteData:
    """Return a source's training and test records, each record on the side that a rule gives it.

    Where nobody is tested on, a test split of the source's own is left alone.

    Raises:
        DataError: the source lacks what the rule needs, has what would change it, or leaves one side empty.
    """
    if rule.rule == "none":
        return SiteData(source.train, source.train.select(np.arange(0)))
    if rule.rule == "hash":
        return _by_hash(source, rule)
    if source.test is None:
        raise _changed(rule, "The source has no test split any more; bring that split back")
    if rule.rule == "rehearsal" and _sha256(source) != rule.sha256:
        raise _changed(rule, "Its records, or how they are dealt, changed; bring its study back as it was")
    return SiteData(source.train, source.test)


def _by_hash(source: Source, rule: SplitRule) -> SiteData:
    if source.test is not None:
        raise _changed(rule, "The source has a test split of its own now; put all records into the train split")
    ids = source.train.patients if rule.ids == "patients" else source.train.ids
    if ids is None:
        raise _changed(rule, f"The source has no {rule.ids} any more; bring them back, the same as before")
    tested = _tested(ids, rule)
    if tested.all() or not tested.any():
        raise DataError(
            f"A site trains on some units and tests on others. {rule.in_words} That leaves one side empty; give it "
            "more records or another test_fraction before its ledger is made, or bring back the records that it had."
        )
    return SiteData(source.train.select(np.flatnonzero(~tested)), source.train.select(np.flatnonzero(tested)))


def _tested(ids: np.ndarray, rule: SplitRule) -> np.ndarray:
    """Return which records are held out, bool (records,): those whose id has a small hash."""
    assert rule.fraction is not None, "a rule that hashes has one"
    known, of_record = np.unique(ids, return_inverse=True)
    limit = int(rule.fraction * 2**64)
    hashes = (hashlib.sha256(f"{rule.salt} {rule.ids} {each}".encode()).digest() for each in known.tolist())
    small = [int.from_bytes(digest[:8], "big") < limit for digest in hashes]
    return np.array(small, dtype=bool)[of_record]


def _changed(rule: SplitRule, found: str) -> DataError:
    return DataError(
        f"Everyone stays on the side, training or test, that the ledger's rule gave when it was made. {rule.in_words} "
        f"{found}."
    )


def _sha256(source: Source) -> str:
    """Return the hash of all records, in their order, side by side."""
    assert source.test is not None, "a rehearsal deals both"
    return sha256_of(array for records in (source.train, source.test) for array in arrays_of(records).values())

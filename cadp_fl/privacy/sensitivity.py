"""How far one record moves the joint vector of moments, in L2."""

import math

__all__ = ["moments_sensitivity"]


def moments_sensitivity(count: float, total: float, shared: float, own: float, *, replaces: bool) -> float:
    """Return D = max |phi(u, y) - phi(v, z)| over |u|, |v| <= 1 and all labels; without `replaces`, max |phi(u, y)|.

    phi(u, y) = (a e_y, b e_y u, s u u^T, w e_y u u^T). With r = |u|, t = |v|, u.v = p and W = s^2 + w^2,

        y = z:   b^2 (r^2 + t^2 - 2 p) + W (r^4 + t^4 - 2 p^2)
        y != z:  2 a^2 + b^2 (r^2 + t^2) + w^2 (r^4 + t^4) + s^2 (r^4 + t^4 - 2 p^2)

    since |u u^T - v v^T|^2 = r^4 + t^4 - 2 p^2 in the Frobenius norm. The first is no smaller at -|p| than at |p|. At a
    fixed p both grow with r and t, and larger ones allow every p that smaller ones do, |p| <= r t: so r = t = 1, and p
    is a cosine c. The second is largest at c = 0: 2 (a^2 + b^2 + s^2 + w^2). The first, 2 b^2 (1 - c) +
    2 W (1 - c^2), is concave in c, and largest at c = max(-1, -b^2 / (2 W)): where second moments weigh most, records
    move them furthest at an angle and not as opposites. Neither dominates. The larger of both holds whether labels are
    public or not; so it does for a record that has no part in the sum, at which phi is 0, since |phi|^2 is at most
    a^2 + b^2 + s^2 + w^2, half of the second.

    Args:
        count: a, weight of the counts.
        total: b, of the sums.
        shared: s, of the second moment of all classes.
        own: w, of the second moments of each class.
        replaces: whether a record is replaced, or added or removed.
    """
    longest = count**2 + total**2 + shared**2 + own**2
    if not replaces:
        return math.sqrt(longest)
    squares = shared**2 + own**2
    cosine = -1.0 if total**2 >= 2 * squares else -(total**2) / (2 * squares)
    within = 2 * total**2 * (1 - cosine) + 2 * squares * (1 - cosine**2)
    return math.sqrt(max(within, 2 * longest))

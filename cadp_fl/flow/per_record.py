"""Flow layers that treat each record of a batch by itself, so that DP-SGD can train a flow made of them.

Read by eye, class by class: none takes a statistic of a batch, or keeps anything of it. FrEIA's classes are here if
they are fixed maps, or have their weights in subnets alone, which are checked like any other layer. So `AllInOneBlock`,
`ActNorm` and the learned rotations are not: they have weights of their own, or take their start from a batch. What a
warm start sets has weights of its own too, which DP-SGD trains none of: they stay frozen, or it refuses.
"""

import FrEIA.framework as ff
import FrEIA.modules as fm
from torch import nn

from cadp_fl.features.coordinates import Coordinates
from cadp_fl.features.front_end import ImageFrontEnd, RowFrontEnd
from cadp_fl.flow.affine import ConditionalAffine
from cadp_fl.flow.cinn import DOWNSAMPLINGS, FLOW_CONTAINERS
from cadp_fl.flow.coupling import COUPLINGS
from cadp_fl.flow.permutations import PERMUTATIONS
from cadp_fl.flow.subnets import ConvolutionalSubnet, DenseSubnet

__all__ = ["PER_RECORD_LAYERS"]

PER_RECORD_LAYERS: tuple[type[nn.Module], ...] = (
    *FLOW_CONTAINERS,
    Coordinates,
    ImageFrontEnd,
    RowFrontEnd,
    ConditionalAffine,
    *COUPLINGS.values(),
    *PERMUTATIONS.values(),
    *DOWNSAMPLINGS.values(),
    ConvolutionalSubnet,
    DenseSubnet,
    nn.ModuleList,
    ff.GraphINN,
    ff.SequenceINN,
    fm.AffineCouplingOneSided,
    fm.ConditionalAffineTransform,
    fm.Fixed1x1Conv,
    fm.FixedLinearTransform,
    fm.Flatten,
    fm.GINCouplingBlock,
    fm.GLOWCouplingBlock,
    fm.HaarUpsampling,
    fm.IRevNetUpsampling,
    fm.NICECouplingBlock,
    fm.PermuteRandom,
    fm.RNVPCouplingBlock,
)
"""Classes to name as `covered` to `train_dp_sgd`, beside its own. A coupling that a plugin adds later is not among
them."""

"""The losses as the papers write them: the reference every fast path is tested against.

VCReg is arXiv 2306.13292, VICReg arXiv 2105.04906; its competitors name their papers. Nothing here
is optimized; gradients come from autograd. Samples are rows: z has shape (n, d), n samples of d
features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from placement_rules import Layout

_BLOCK = 8_388_608  # elements of what is computed for one block of samples


def flatten_samples(h: Tensor, layout: str | Layout, mask: Tensor | None = None) -> Tensor:
    """Return the activation as rows: every location is a sample (VCReg, section 3.2).

    **Arguments:**

    - `h`: an activation of any shape, such as ``(batch, channels, height, width)``.
    - `layout`: which axis holds the channels, such as ``"NCHW"``.
    - `mask`: true, or not zero, where a location is a sample; of the shape of `h` without its
      channel axis. None where every location is one.

    **Returns:** z of shape (n, d), in float32 if `h` is in float16 or bfloat16.
    """
    axis = Layout.parse(layout).axis
    if h.dtype in {torch.float16, torch.bfloat16}:
        h = h.float()
    z = h.movedim(axis, -1).reshape(-1, h.shape[axis])
    return z if mask is None else z[mask.reshape(-1) != 0]


def covariance(z: Tensor) -> Tensor:
    """Return the covariance matrix C = Σᵢ (zᵢ − z̄)(zᵢ − z̄)ᵀ / (n − 1), below VCReg's Eq. 4.

    **Arguments:**

    - `z`: shape (n, d); with n = 1 the covariance is taken to be zero.

    **Returns:** shape (d, d).
    """
    n, d = z.shape
    if n < 2:
        return z.new_zeros(d, d) * z.sum()
    centred = z - z.mean(dim=0)
    return centred.T @ centred / (n - 1)


def correlations_of(c: Tensor) -> Tensor:
    """Return the correlation matrix that belongs to a covariance matrix, shape (d, d)."""
    std = c.diagonal().sqrt()
    std = torch.where(std > 0, std, torch.nan)
    return (c / std / std[:, None]).clamp(-1, 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries beside the diagonal, shape (d(d−1),)."""
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix[others]


def variance_loss(z: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """Return ℓ_var = (1/d) Σᵢ max(0, γ − √(C_ii + ε)): VCReg's Eq. 3 with VICReg's γ and ε.

    VCReg's Eq. 3 is this with γ = 1, ε = 0; ``gamma`` and ``eps`` come from VICReg's Eq. 1 and 2.
    A single sample has no variance and gives zero.

    **Arguments:**

    - `z`: shape (n, d).
    - `gamma`: the standard deviation below which a feature is penalized.
    - `eps`: keeps the square root differentiable at zero variance.
    """
    if z.shape[0] < 2:
        return z.sum() * 0
    std = torch.sqrt(covariance(z).diagonal() + eps)
    return torch.relu(gamma - std).mean()


def smooth_l1(x: Tensor, delta: float | None) -> Tensor:
    """Return VCReg's Eq. 10: x² where |x| ≤ δ, else 2δ|x| − δ²; x² everywhere if δ is None."""
    if delta is None:
        return x**2
    return torch.where(x.abs() <= delta, x**2, 2 * delta * x.abs() - delta**2)


def covariance_loss(
    z: Tensor, delta: float | None = None, normalization: Literal["vcreg", "vicreg"] = "vcreg"
) -> Tensor:
    """Return ℓ_cov = 1/(d(d−1)) Σ_{i≠j} ρ(C_ij): VCReg's Eq. 4, and Eq. 10 if δ is given.

    A single feature has no covariance and gives zero.

    **Arguments:**

    - `z`: shape (n, d).
    - `delta`: where ρ(x) = x² turns linear (Eq. 10); None for Eq. 4.
    - `normalization`: ``"vcreg"`` divides by d(d − 1), ``"vicreg"`` by d (VICReg's Eq. 4).
    """
    d = z.shape[1]
    if d < 2 or z.shape[0] < 2:
        return z.sum() * 0
    c = covariance(z)
    others = c - torch.diag(c.diagonal())
    count = d * (d - 1) if normalization == "vcreg" else d
    return smooth_l1(others, delta).sum() / count


def vcreg_loss(
    h: Tensor,
    alpha: float | Tensor = 0.64,
    beta: float | Tensor = 0.08,
    delta: float | None = 1.0,
    layout: str | Layout | None = None,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the penalty α ℓ_var + β ℓ_cov of one activation (VCReg's Eq. 5, a term of Eq. 8).

    **Arguments:**

    - `h`: an activation; by default of shape (n, d).
    - `alpha`, `beta`: the weights of the variance and the covariance loss.
    - `delta`: where the covariance loss turns linear (Eq. 10); None for squares (Eq. 4).
    - `layout`: which axis holds the channels; needed where `h` has more than two axes.
    - `gamma`, `eps`: see `variance_loss`.
    - `mask`: which locations are samples, see `flatten_samples`; by default all of them.

    **Raises:** `ValueError` if the layout is missing or does not have as many axes as `h`.
    """
    if layout is None and h.ndim == 2:
        layout = "NC"
    if layout is None or Layout.parse(layout).ndim != h.ndim:
        raise ValueError(
            f"layout={layout!r} does not say which axis of a tensor of shape {tuple(h.shape)} "
            'holds the channels. Give one letter an axis, such as layout="NCHW".'
        )
    if mask is not None and mask.shape != h.movedim(Layout.parse(layout).axis, -1).shape[:-1]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; it takes one entry a location, the shape of h, "
            f"{tuple(h.shape)}, without the channel axis of {layout}."
        )
    z = flatten_samples(h, layout, mask)
    return alpha * variance_loss(z, gamma, eps) + beta * covariance_loss(z, delta)


def invariance_loss(z: Tensor, other: Tensor) -> Tensor:
    """Return s(Z, Z′) = (1/n) Σᵢ ‖zᵢ − z′ᵢ‖²: VICReg's Eq. 5, a sum over features.

    VICReg's pseudo-code uses ``mse_loss``, which is 1/d of this.
    """
    return (z - other).pow(2).sum(dim=1).mean()


def vicreg_loss(
    z: Tensor,
    other: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance_weight: float = 1.0,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Return ℓ(Z, Z′) = λ s(Z, Z′) + µ [v(Z) + v(Z′)] + ν [c(Z) + c(Z′)]: VICReg's Eq. 6.

    **Arguments:**

    - `z`, `other`: embeddings of two views, each of shape (n, d).
    - `invariance`, `variance`, `covariance_weight`: λ, µ, ν (section 4.2 gives 25, 25, 1).
    - `gamma`, `eps`: see `variance_loss`.
    """
    views = (z, other)
    v = torch.stack([variance_loss(view, gamma, eps) for view in views]).sum()
    c = torch.stack([covariance_loss(view, normalization="vicreg") for view in views]).sum()
    return invariance * invariance_loss(z, other) + variance * v + covariance_weight * c


def decov_loss(z: Tensor) -> Tensor:
    """Return ½ (‖C‖²_F − ‖diag C‖²): DeCov (Cogswell et al. 2015, arXiv 1511.06068).

    C is the covariance matrix with 1/n, so this is half the sum of its squared entries beside the
    diagonal.

    **Arguments:**

    - `z`: shape (n, d).
    """
    centred = z - z.mean(dim=0)
    c = centred.T @ centred / len(z)
    return (c.square().sum() - c.diagonal().square().sum()) / 2


def wld_loss(
    z: Tensor,
    form: Literal["direct", "det", "logdet"] = "direct",
    *,
    gamma: float = 10.0,
    norm_weight: float = 0.0,
) -> Tensor:
    """Return the diversity penalty of WLD-Reg (Laakom et al. 2023, arXiv 2301.01352).

    Two features are as similar as S_nm = (1/N) Σ_j exp(−γ (z_jn − z_jm)²). The penalty is
    Σ_{n≠m} S_nm (``"direct"``), −det S (``"det"``) or −log det S (``"logdet"``), plus
    ``norm_weight`` · Σ_j ‖z_j‖², against features that are told apart by growing.

    Samples are taken in blocks whose differences are computed again in backward, so that memory
    grows with d² and not with n d².

    **Arguments:**

    - `z`: shape (n, d).
    - `form`: which of the three.
    - `gamma`: γ, how soon features count as different.
    - `norm_weight`: relative to the diversity penalty; 0 leaves the norm out.

    **Raises:** `ValueError` for another form.
    """
    if form not in {"direct", "det", "logdet"}:
        raise ValueError(f'form={form!r} must be "direct", "det" or "logdet".')
    n, d = z.shape
    similarity = _sum_over_blocks(_similarity, z, d * d, gamma) / n
    if form == "direct":
        penalty = similarity.sum() - similarity.diagonal().sum()
    elif form == "det":
        penalty = -torch.linalg.det(similarity)
    else:
        penalty = -torch.linalg.slogdet(similarity).logabsdet
    return penalty + norm_weight * z.square().sum()


def sigreg_loss(
    z: Tensor,
    slices: int = 256,
    points: int = 17,
    extent: float = 5.0,
    *,
    directions: Tensor | None = None,
) -> Tensor:
    """Return SIGReg, the regularizer of LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544).

    How far the samples are from N(0, I), by Epps and Pulley's statistic in random directions a:

        mean over a of n ∫ |φ_a(t) − exp(−t²/2)|² exp(−t²/2) dt,
        φ_a(t) = (1/n) Σ_j exp(i t aᵀz_j),

    by the trapezoidal rule on `points` points of [−`extent`, `extent`]: 17 of [−5, 5] in the paper,
    33 of [−3, 3] in lightly. Away from its minimum it grows with n.

    The directions are drawn anew at each call from torch's random numbers, as dropout's masks are.
    Samples are taken in blocks that are computed again in backward, so that memory does not grow
    with n · `slices` · `points`.

    **Arguments:**

    - `z`: shape (n, d).
    - `slices`: how many directions.
    - `points`: of the integral, an odd number; `extent`, to where it goes.
    - `directions`: shape (d, slices), of any length, to be taken instead.

    **Raises:** `ValueError` for numbers that are none, or an even number of points.
    """
    if slices < 1 or points < 3 or points % 2 == 0 or not extent > 0:
        raise ValueError(
            f"slices={slices}, points={points}, extent={extent}: slices must be ≥ 1, points an odd "
            "number ≥ 3, and extent positive."
        )
    n, d = z.shape
    if directions is None:
        directions = torch.randn(d, slices, dtype=z.dtype, device=z.device)
    directions = directions / directions.norm(dim=0)
    # The integrand is even: half of the points do, twice.
    t = torch.linspace(0, extent, points // 2 + 1, dtype=z.dtype, device=z.device)
    target = torch.exp(-t.square() / 2)
    size = directions.shape[1] * len(t)
    real, imaginary = _sum_over_blocks(_characteristic, z, size, directions, t) / n
    error = (real - target).square() + imaginary.square()
    return 2 * n * torch.trapezoid(error * target, t).mean()


def radial_loss(z: Tensor, eps: float = 1e-4) -> Tensor:
    """Return KL(p(‖z‖) ‖ χ_d): Radial-VCReg's radial Gaussianization (Kuang et al. 2026).

    The norm r = ‖z‖ of a Gaussian sample follows the χ distribution of d degrees of freedom (arXiv
    2602.14272, Eq. 20). The cross-entropy is the mean of r²/2 − (d−1) log r, plus
    log(2^{d/2−1} Γ(d/2)); from it the entropy of r is subtracted, which is estimated from how far
    every m-th of the sorted norms are apart, m = √n: the mean of log((n+1)/m (r_(i+m) − r_(i))).
    That can make it a little negative.

    **Arguments:**

    - `z`: shape (n, d), not centred; a single sample gives zero.
    - `eps`: the least norm, and what is added to spacings.
    """
    n, d = z.shape
    if n < 2:
        return z.sum() * 0
    r: Tensor = torch.linalg.vector_norm(z, dim=1).clamp_min(eps)
    constant = (d / 2 - 1) * math.log(2) + math.lgamma(d / 2)
    cross_entropy: Tensor = (r.square() / 2 - (d - 1) * r.log()).mean() + constant
    m = round(math.sqrt(n))
    ordered = r.sort().values
    spacings = (ordered[m:] - ordered[:-m]) * ((n + 1) / m)
    entropy: Tensor = (spacings + eps).log().mean()
    return cross_entropy - entropy


def radial_vcreg_loss(
    z: Tensor,
    variance: float = 25.0,
    covariance_weight: float = 1.0,
    radial: float = 100.0,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Return µ v(Z) + ν c(Z) + β KL(p(‖z‖) ‖ χ_d): Radial-VCReg (arXiv 2602.14272).

    v and c are VICReg's terms (c divides by d), as in the paper and its published code, whose
    default weights these are.

    **Arguments:**

    - `z`: shape (n, d).
    - `variance`, `covariance_weight`, `radial`: µ, ν, β.
    - `gamma`, `eps`: see `variance_loss`.
    """
    c = covariance_loss(z, normalization="vicreg")
    v = variance_loss(z, gamma, eps)
    return variance * v + covariance_weight * c + radial * radial_loss(z, eps)


def spectral_decoupling_loss(logits: Tensor, weight: float = 1.0) -> Tensor:
    """Return (λ/2) ‖ŷ‖², averaged over samples: spectral decoupling (Pezeshki et al. 2021).

    A penalty on logits instead of weights (arXiv 2011.09468), to be added to the cross-entropy:
    ``loss + spectral_decoupling_loss(logits, weight)``. The paper sums over samples beside a summed
    cross-entropy; this is the mean, beside PyTorch's mean.

    **Arguments:**

    - `logits`: shape (n, classes), or (n,) for two classes.
    - `weight`: λ.
    """
    return weight / 2 * logits.square().sum() / len(logits)


def _sum_over_blocks(f: Callable[..., Tensor], z: Tensor, size: int, *args: Any) -> Tensor:
    """Return the sum of f over blocks of samples, where it computes `size` elements a sample.

    What a block computes is not kept for backward.
    """
    blocks = z.split(max(_BLOCK // size, 1))
    parts = [checkpoint(f, block, *args, use_reentrant=False) for block in blocks]
    return torch.stack(parts).sum(dim=0)


def _characteristic(block: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Return Σ cos(t aᵀz) and Σ sin(t aᵀz), shape (2, directions, t)."""
    angles = (block @ directions)[:, :, None] * t
    return torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])


def _similarity(block: Tensor, gamma: float) -> Tensor:
    differences = block[:, :, None] - block[:, None, :]
    return torch.exp(-gamma * differences.square()).sum(dim=0)

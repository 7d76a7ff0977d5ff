"""Face albedo for the synthetic world: two chromophores make the skin, drawn layers make the rest.

Bare skin is ``exp(-offset - linear * m - square * m^2 - blood * h)`` of melanin m and haemoglobin h, per channel;
make-up, hair, eyes and mouth are then painted over it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.assets import FaceTemplate
from nl3dmm.geometry.lighting import encode_srgb
from nl3dmm.synthetic.skin_banks import SkinBanks, build_banks
from nl3dmm.synthetic.skin_params import Mix, SkinParameters, draw_skin
from nl3dmm.types import concatenate

# Per channel R, G, B: -log(albedo) = offset + linear * m + square * m^2 + blood * h, through the linear albedos
# (.70 .51 .415) of the lightest, (.43 .24 .145) of olive and (.085 .043 .027) of the darkest skin at h = .35.
SKIN_CURVES = ((0.322, -0.159, 2.268, 0.10), (0.481, 0.542, 1.931, 0.55), (0.704, 1.474, 1.259, 0.50))
SCLERA = (0.52, 0.47, 0.44)
MOUTH = (0.045, 0.012, 0.010)
LASH = (0.020, 0.014, 0.011)

Field = Float[Tensor, "batch uv_height uv_width"]
Colour = Float[Tensor, "batch 3 uv_height uv_width"]


class SkinSampler:
    """Albedo maps of random faces for one template; ``seed`` selects the drawn layers.

    The layers live on the template's device. On the CPU a map depends on nothing but (template, seeds, index), bit by
    bit: maps are composed one by one, which is also the fastest way because a map fits the cache.
    """

    def __init__(self, template: FaceTemplate, seed: int = 0):
        self.banks = build_banks(template, seed)

    @torch.no_grad()
    def albedo(self, seed: int, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 3 uv_height uv_width"]:
        """sRGB-encoded albedo in [0, 1] of the faces ``(seed, index)``.

        Raises:
            ShapeError: ``seed`` or an index is negative.
        """
        device = self.banks.lips.device
        faces = [draw_skin(seed, index) for index in indices.tolist()]
        if not faces:
            return torch.empty(0, 3, *self.banks.lips.shape, device=device)
        if device.type == "cpu":
            return torch.cat([paint(self.banks, face) for face in faces])
        return paint(self.banks, concatenate(faces).to(device))


def paint(banks: SkinBanks, face: SkinParameters) -> Colour:
    """sRGB-encoded albedo of the faces described by the parameters."""
    colour = _skin(banks, face)
    colour = _make_up(banks, face, colour)
    colour = _hair(banks, face, colour)
    colour = _eyes(banks, face, colour)
    colour = _over(colour, _constant(colour, MOUTH), 0.9 * banks.mouth)
    colour = colour * (1 - 0.82 * banks.nostrils)
    return encode_srgb((colour * face.gain[..., None, None]).clamp(0.002, 0.95))


def _skin(banks: SkinBanks, face: SkinParameters) -> Colour:
    stripes = banks.lips * _sum(banks.stripes, face.lip_stripes)
    grain = _sum(banks.grain, face.grain)
    lines = _sum(banks.lines, face.lines)
    shadow = _each(face.under_eye) * banks.under_eye + 0.3 * banks.lids
    blotches = _sum(banks.blotches, face.blotches)
    texture = _sum(banks.patches, face.pigment) + 0.35 * blotches + grain
    melanin = _each(face.melanin) * (1 + 0.12 * texture) + 0.14 * texture
    melanin = melanin + _each(face.lip_tone[:, 0]) * banks.lips + 0.10 * shadow + 0.05 * lines
    melanin = melanin + 0.55 * _sum(banks.freckles, face.freckles) + 0.75 * _sum(banks.moles, face.moles)
    blood = _each(face.haemoglobin) + _sum(banks.patches, face.flush) + blotches + grain
    blood = blood + torch.einsum("br,rhw->bhw", face.region_flush, banks.flush_regions) + 0.25 * shadow + 0.35 * lines
    blood = blood + 0.9 * _sum(banks.spots, face.spots) + _each(face.lip_tone[:, 1]) * banks.lips + stripes
    melanin, blood = melanin.clamp(0, 1.3), blood.clamp(0, 3)
    channels = [torch.exp(-(a + melanin * (b + c * melanin) + d * blood)) for a, b, c, d in SKIN_CURVES]
    return torch.stack(channels, dim=1)


def _make_up(banks: SkinBanks, face: SkinParameters, colour: Colour) -> Colour:
    blushed = colour * _constant(colour, (1.02, 0.58, 0.62))
    colour = _over(colour, blushed, _each(face.blush) * banks.blush)
    colour = _over(colour, _paint(face.eye_shadow_colour), _each(face.eye_shadow) * banks.eye_shadow)
    furrows = 1 + 0.8 * _sum(banks.stripes, face.lip_stripes)
    return _over(colour, _paint(face.lipstick_colour) * furrows[:, None], _each(face.lipstick) * banks.lips)


def _hair(banks: SkinBanks, face: SkinParameters, colour: Colour) -> Colour:
    brows = _sum(banks.hair.brows, face.brows)
    colour = _over(colour, _paint(face.brow_colour), brows.clamp(0, 0.95))
    zones = _pick(banks.hair.zones, face.beard_edges)
    bare = 1 - banks.lips
    roots = (zones * face.stubble_zones[..., None, None]).amax(1) * bare
    stubble = roots * (0.42 + 0.9 * _sum(banks.hair.stubble, face.beard_hairs))
    colour = _over(colour, colour * 0.35 + 0.5 * _paint(face.hair_colour), stubble.clamp(0, 0.85))
    beard = (zones * face.beard_zones[..., None, None]).amax(1) * bare
    hairs = _sum(banks.hair.hairs, face.beard_hairs)
    tone = _paint(face.hair_colour) * (0.5 + 1.1 * hairs)[:, None]
    return _over(colour, tone, (beard * (0.6 + 0.8 * hairs)).clamp(0, 0.96))


def _eyes(banks: SkinBanks, face: SkinParameters, colour: Colour) -> Colour:
    white = _constant(colour, SCLERA) * (_each(face.sclera) * banks.sclera_tone)[:, None]
    iris = _paint(face.iris_colour) * _pick(banks.iris_tone, face.eyes)[:, None]
    eye = _over(white, iris, _pick(banks.iris, face.eyes))
    eye = eye * (1 - 0.97 * _pick(banks.pupil, face.eyes))[:, None]
    colour = _over(colour, eye, banks.eyeball)
    liner = _each(face.liner)
    lashes = torch.maximum(banks.lashes, ((liner - 0.7) / 0.3).clamp(0, 1) * banks.liner) * liner.clamp(min=0.7)
    return _over(colour, _constant(colour, LASH), lashes)


def _over(colour: Colour, paint_: Tensor, alpha: Tensor) -> Colour:
    """Paint with coverage ``alpha``, which lacks the channel axis."""
    return torch.lerp(colour, paint_.expand_as(colour), alpha.unsqueeze(-3).expand_as(colour))


def _sum(bank: Float[Tensor, "variants uv_height uv_width"], mix: Mix) -> Field:
    layers = bank[mix.variants % len(bank)]  # (batch, terms, uv_height, uv_width)
    return (layers * mix.weights[..., None, None]).sum(1)


def _pick(bank: Float[Tensor, "variants *layer"], mix: Mix) -> Float[Tensor, "batch *layer"]:
    return bank[mix.variants[:, 0] % len(bank)]


def _each(value: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1 1"]:
    return value[:, None, None]


def _paint(colour: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3 1 1"]:
    return colour[..., None, None]


def _constant(like: Tensor, colour: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
    return like.new_tensor(colour)[:, None, None]

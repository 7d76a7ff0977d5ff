"""Which losses there are and how much they weigh: the config side of ``highfidelity``. Table: ``docs/losses.md``."""

from dataclasses import asdict, dataclass, field, replace

from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError
from nl3dmm.nn.perceptual import PerceptualConfig

LANDMARK_REACHES = ("camera", "encoder")
LABEL_TERMS = ("camera_rotation", "camera_position", "light", "shape", "albedo")
# Terms that ask for pictures: pre-training on labels, which has none of them, renders nothing.
RENDERED_TERMS = (
    *("photo_proxy_proxy", "photo_proxy_final", "photo_final_proxy", "photo_final_final"),
    *("gradient_difference", "perceptual"),
    *("albedo_constancy", "residual_symmetry", "white_shading", "white_shading_of_batch", "over_exposure"),
)


@dataclass(frozen=True)
class LossWeights:
    """One weight per term. Units: images and albedo in [0, 1], shape in cm, image positions in half image sizes.

    Supervised terms need a batch that knows the truth, as synthetic faces do; they are skipped where it does not.
    """

    # supervised by labels
    camera_rotation: float = 5.0
    camera_position: float = 20.0
    light: float = 1.0
    shape: float = 20.0
    albedo: float = 5.0
    landmark: float = 10.0  # reaches the encoder only: sparse points must not bend the shape (paper section 3.2)
    # reconstruction of the image by (S~, A~), (S~, A), (S, A~), paper equation 15
    photo_proxy_proxy: float = 2.0
    photo_proxy_final: float = 4.0
    photo_final_proxy: float = 4.0
    photo_final_final: float = 0.0  # left out by the paper: S and A would settle for what suits neither proxy
    gradient_difference: float = 0.0  # an ablation of the paper; of (S~, A) and (S, A~), as the perceptual term
    perceptual: float = 0.05
    # regularisers of the proxies, paper equation 13
    albedo_symmetry: float = 1.0
    albedo_constancy: float = 0.3
    albedo_pairs: float = 0.0  # random pairs of skin texels, released code
    shape_smoothness: float = 200.0
    shape_smoothness_final: float = 0.0  # released code
    # residuals, paper equations 14 and 16
    residual_shape: float = 1.0
    residual_albedo: float = 1.0
    residual_symmetry: float = 5.0
    # light
    white_shading: float = 0.1
    white_shading_of_batch: float = 0.0  # released code
    over_exposure: float = 0.0  # released code
    light_tint: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            check_range(f"weights.{name}", weight, 0, 1e9)


def _pretrain_weights() -> LossWeights:
    """Labels and regularisers only: nothing that needs a rendering."""
    return LossWeights(**dict.fromkeys(RENDERED_TERMS, 0.0))


@dataclass(frozen=True)
class LossConfig:
    """Weights of the two stages, and what the terms are made of.

    ``landmark_reaches``: ``camera`` alone, with the shape held fixed; ``encoder`` as in the paper's encoder-only step,
    where they also move the shape's latent through the decoder, whose parameters are held fixed.
    """

    pretrain: LossWeights = field(default_factory=_pretrain_weights)
    finetune: LossWeights = field(default_factory=LossWeights)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    perceptual_start: float = 0.0  # fraction of the fine-tuning after which the perceptual term is on
    label_fade: float = 0.0  # fraction of the fine-tuning in which weights of labels go from pre-training's to its own
    landmark_reaches: str = "camera"  # camera | encoder

    def __post_init__(self) -> None:
        check_range("loss.perceptual_start", self.perceptual_start, 0, 1)
        check_range("loss.label_fade", self.label_fade, 0, 1)
        if self.landmark_reaches not in LANDMARK_REACHES:
            raise ConfigError(
                f"loss.landmark_reaches: got {self.landmark_reaches!r}; expected one of {LANDMARK_REACHES}. Choose one."
            )

    def finetune_at(self, progress: float) -> LossWeights:
        """Weights when a fraction ``progress`` of the fine-tuning is done."""
        changed = {} if progress >= self.perceptual_start else {"perceptual": 0.0}
        if progress < self.label_fade:
            before, after = asdict(self.pretrain), asdict(self.finetune)
            share = progress / self.label_fade
            changed |= {name: (1 - share) * before[name] + share * after[name] for name in LABEL_TERMS}
        return replace(self.finetune, **changed)

"""What is optimised when: the steps of a fit, their rates and the weights of their terms."""

from dataclasses import dataclass
from typing import Literal

from nl3dmm.config import check_range

Stage = Literal["pose", "proxy", "final", "detail"]


@dataclass(frozen=True)
class FitConfig:
    """Steps and weights of one optimisation; colours in [0, 1], landmarks in half image sizes.

    The steps are split into stages: the pose on landmarks, proxies, finals, and a free residual of the finals' albedo,
    under which all else stays: where both move, the residual explains what the shape should.
    """

    steps: int = 60
    learning_rate: float = 0.15  # of the latents
    light_rate: float = 0.03
    camera_rate: float = 0.006
    pose_rate: float = 0.03  # of the camera in the landmark steps
    landmark_steps: int = 0  # the first of the steps: the camera alone, on landmarks alone
    proxy_steps: int = 0  # the next of the steps: (S~, A~) is compared with the photo
    detail_steps: int = 0  # the last of the steps: a free albedo residual in UV space
    detail_rate: float = 0.05
    photo: float = 1.0
    perceptual: float = 0.0  # needs a feature network
    landmark: float = 0.0
    latent_prior: float = 0.02  # mean squared distance from the latents that the fit starts with
    light_prior: float = 0.0  # mean squared distance of the light from that which the fit starts with
    detail_prior: float = 0.02  # l1 of the albedo residual and of its differences between neighbours
    detail_symmetry: float = 0.1  # what is hidden is like its mirror image (soft symmetry of paper equation 16)
    tolerance: float = 0.0  # a stage ends when no loss falls by this share from 10 steps to the next 10; 0: never

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 100_000)
        check_range("learning_rate", self.learning_rate, 1e-9, 10)
        check_range("landmark_steps", self.landmark_steps, 0, self.steps)
        check_range("proxy_steps", self.proxy_steps, 0, self.steps - self.landmark_steps)
        check_range("detail_steps", self.detail_steps, 0, self.steps - self.landmark_steps - self.proxy_steps)
        check_range("tolerance", self.tolerance, 0, 1)

    def stages(self) -> list[tuple[Stage, int]]:
        """What is optimised for how many steps at most, in order."""
        final = self.steps - self.landmark_steps - self.proxy_steps - self.detail_steps
        counts = {"pose": self.landmark_steps, "proxy": self.proxy_steps, "final": final, "detail": self.detail_steps}
        return [(stage, count) for stage, count in counts.items() if count]  # type: ignore[misc]


def photo_config(steps: int, guided: bool = True) -> FitConfig:
    """For photos, which lie further from what was trained on than synthetic faces: smaller steps, a stronger prior.

    Args:
        guided: by landmarks, on which the first fifth of the steps, which are cheap, finds the pose.
    """
    return FitConfig(
        steps,
        learning_rate=0.05,
        landmark=1.0 if guided else 0.0,
        landmark_steps=steps // 5 if guided else 0,
        detail_steps=steps * 2 // 5,
        latent_prior=0.1,
        light_prior=0.2,
    )

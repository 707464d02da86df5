"""What a task tells its container about itself."""

from typing import Any, Final

IMAGE_DIGEST: Final = "TDM_R1_IMAGE_DIGEST"
"""The command writes it into the manifest's provenance: an image cannot know its own digest."""


def record_image(task: Any) -> None:
    """Hand the digest of the task's image to the container, if the image is pinned by one."""
    digest = task.container_spec.image.partition("@")[2]
    if digest:
        task.set_env_variable(IMAGE_DIGEST, digest)

"""Renders the cameras of a MuJoCo model faster than robosuite, with the same pixels."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.extras import needed

_HIDDEN_GROUP = 5  # never drawn


class CameraRenderer:
    """Renders square RGB images from the cameras of one model.

    Pixels are those of robosuite's own renderer, bit for bit. Software renderers spend their time
    on the vertices of meshes, so shapes outside a camera's view are left out of the scene. Where a
    light casts shadows or a floor mirrors, all shapes are drawn, as they may show indirectly.

    Args:
        model: mujoco.MjModel.
        size: side of the images in pixels.
        msaa_samples: anti-aliasing samples; 0 is quickest, LIBERO's own images have 4.
        hidden_groups: groups of shapes that are not drawn, beside those that MuJoCo hides itself.
    """

    def __init__(
        self, model: Any, *, size: int, msaa_samples: int, hidden_groups: Sequence[int] = ()
    ) -> None:
        mujoco = needed("mujoco", "sim")
        model.vis.quality.offsamples = msaa_samples
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self._model = model
        self._size = size
        self._renderer = mujoco.Renderer(model, size, size)
        self._option = mujoco.MjvOption()
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        drawn = ~np.isin(model.geom_group, hidden_groups)
        self._may_cull = not (model.light_castshadow.any() or _has_mirror(model, drawn))

    def render(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """Image uint8[size, size, 3], top row first, of the state in `data` (mujoco.MjData)."""
        groups = self._model.geom_group.copy()
        if self._may_cull:
            camera_id = self._model.camera(camera).id
            self._model.geom_group[~in_view(self._model, data, camera_id)] = _HIDDEN_GROUP
        try:
            self._renderer.update_scene(data, camera=camera, scene_option=self._option)
        finally:
            self._model.geom_group[:] = groups
        return self._renderer.render()

    def reload(self) -> None:
        """Sends the model's textures to OpenGL again, after they were changed."""
        self._renderer.close()
        self._renderer = needed("mujoco", "sim").Renderer(self._model, self._size, self._size)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()


def in_view(model: Any, data: Any, camera_id: int) -> NDArray[np.bool_]:
    """Returns True for shapes whose bounding sphere reaches into the view pyramid, bool[n]."""
    axes = data.cam_xmat[camera_id].reshape(3, 3)  # columns: right, up, backward
    centres = (data.geom_xpos - data.cam_xpos[camera_id]) @ axes
    radii = model.geom_rbound
    half = np.deg2rad(model.cam_fovy[camera_id]) / 2
    depth = -centres[:, 2]
    # [n, 2]: distance from each side plane of the pyramid, positive outside
    beside = np.abs(centres[:, :2]) * np.cos(half) - depth[:, None] * np.sin(half)
    seen = (depth > -radii) & (beside <= radii[:, None]).all(axis=1)
    return seen | (radii == 0)  # an unbounded plane has radius 0


def _has_mirror(model: Any, drawn: NDArray[np.bool_]) -> bool:
    mujoco = needed("mujoco", "sim")
    flat = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
    material = model.geom_matid[flat & drawn]
    return bool((model.mat_reflectance[material[material >= 0]] > 0).any())

"""Facts of RoboTwin 2.0 that recipes, data and its simulator share: tasks, cameras, names of numbers, rates.

Source: PyPI `rlinf-robotwin-runtime` 0.1.3, which has the task code of the 2.0 release; its `configs/task`.
"""

from __future__ import annotations

from collections.abc import Mapping

CAMERAS = ("head_camera", "left_camera", "right_camera")
"""as the simulator names them; 240 x 320 pixels"""
SIDES = ("left", "right")


def joint_names(arm_joints: int) -> tuple[str, ...]:
    """Return the names of state and action: left arm, left gripper, right arm, right gripper."""
    parts = (*(f"joint{i}" for i in range(1, arm_joints + 1)), "gripper")
    return tuple(f"{side}_{part}" for side in SIDES for part in parts)


JOINT_NAMES = joint_names(6)
"""of aloha-agilex: radians, and grippers with 1 open and 0 closed"""
ARM_DIMS = tuple(i for i, name in enumerate(JOINT_NAMES) if "gripper" not in name)
PHYSICS_HZ = 250
STEPS_A_FRAME = 15
"""physics steps between two recorded frames (`save_freq`)"""
FRAME_HZ = PHYSICS_HZ / STEPS_A_FRAME
"""frames of a demonstration a second of the expert's time: 16.67"""
_LIMITS = {
    400: (
        "adjust_bottle beat_block_hammer click_alarmclock click_bell grab_roller lift_pot move_can_pot "
        "move_pillbottle_pad move_playingcard_away move_stapler_pad pick_diverse_bottles pick_dual_bottles "
        "place_a2b_left place_a2b_right place_container_plate place_fan place_mouse_pad place_object_scale "
        "place_object_stand place_phone_stand press_stapler rotate_qrcode stamp_seal turn_switch"
    ),
    500: ("place_bread_skillet place_burger_fries place_empty_cup place_shoe scan_object"),
    600: ("dump_bin_bigbin handover_mic place_dual_shoes"),
    700: (
        "open_laptop place_bread_basket place_can_basket place_object_basket put_object_cabinet shake_bottle "
        "shake_bottle_horizontally"
    ),
    800: ("handover_block place_cans_plasticbox stack_blocks_two"),
    900: ("hanging_mug stack_bowls_two"),
    1200: ("blocks_ranking_rgb blocks_ranking_size stack_blocks_three stack_bowls_three"),
    1500: ("open_microwave"),
    1700: ("put_bottles_dustbin"),
}
STEP_LIMITS: Mapping[str, int] = {task: limit for limit, tasks in _LIMITS.items() for task in tasks.split()}
"""the 50 tasks, and the actions after which an evaluated episode counts as failed (`_eval_step_limit.yml`)"""

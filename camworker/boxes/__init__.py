"""Boxes from class activation maps, and intersection over union."""

from camworker.boxes.iou import iou
from camworker.boxes.rules import boxes_from_cam, boxes_from_cams, boxes_from_map, check_rule

__all__ = ["boxes_from_cam", "boxes_from_cams", "boxes_from_map", "check_rule", "iou"]

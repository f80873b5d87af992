"""Readers of ground truth: tables, COCO, Pascal VOC, WSOL metadata and mask folders."""

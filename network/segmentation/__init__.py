"""What segmentation networks share: heads on the deepest tap, and losses against masks."""

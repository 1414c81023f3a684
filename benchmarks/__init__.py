"""Programs that measure speed, memory and other figures; none of them is a test."""

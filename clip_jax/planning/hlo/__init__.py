"""Optimized HLO modules, read from their text: what one device computes, moves and sends."""

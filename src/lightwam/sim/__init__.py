"""Simulators behind one small protocol; `base` names it, every other module is one adapter."""

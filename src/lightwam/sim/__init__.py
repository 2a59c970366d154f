"""Simulators behind one base class, `simulator.Simulator`; `registry` makes them by name."""

"""Every method on models whose truth is known: how far it is from the truth, and what it cannot see."""

from analyses.oracles.table import OracleResult, every_circuit, run_oracles

__all__ = ["OracleResult", "every_circuit", "run_oracles"]

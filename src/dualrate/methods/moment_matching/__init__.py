"""Moment Matching Distillation: a student of few steps from a teacher of many."""

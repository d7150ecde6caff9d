"""Dynamics models: p(next observation | observation, action, belief), each a LightningModule."""

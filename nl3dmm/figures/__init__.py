"""The paper's figures as pictures with numbers."""

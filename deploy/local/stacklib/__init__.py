"""Local services for Sluice. Standard library only; Linux only, since it reads /proc."""

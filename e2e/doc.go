// Package e2e tells whole-system stories against real processes.
package e2e

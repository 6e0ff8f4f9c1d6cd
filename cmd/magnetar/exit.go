package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes, the same for every command.
const (
	exitOK        = 0
	exitError     = 1
	exitUsage     = 2
	exitNotFound  = 3
	exitRefused   = 4
	exitUnhealthy = 10
	exitTimeout   = 124
)

// coded is an error that knows its exit code.
type coded struct {
	code int
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

// errSilent ends a command that has already said what was wrong.
var errSilent = errors.New("already reported")

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &coded{exitUsage, fmt.Errorf(format+"\nRun '%s --help' for usage.", append(args, cmd.CommandPath())...)}
}

func refusedf(format string, args ...any) error {
	return &coded{exitRefused, fmt.Errorf(format, args...)}
}

func notFoundf(format string, args ...any) error {
	return &coded{exitNotFound, fmt.Errorf(format, args...)}
}

// exitCode maps an error to the exit code that scripts rely on.
func exitCode(err error) int {
	var c *coded
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	switch code := grpcCode(err); code {
	case codes.NotFound:
		return exitNotFound
	case codes.FailedPrecondition, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.ResourceExhausted, codes.InvalidArgument:
		return exitRefused
	case codes.DeadlineExceeded:
		return exitTimeout
	}
	return exitError
}

// grpcCode is the status code anywhere in err's chain; Unknown if there is none.
func grpcCode(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Code()
	}
	return codes.Unknown
}

// explain says an error to a person: what, where, and what next.
func explain(err error, servers string) string {
	if grpcCode(err) == codes.Unavailable {
		return fmt.Sprintf("%v\nNo answer from %s. Is a node running there? 'magnetar standalone' starts one; --server or MAGNETAR_SERVER names another.", err, servers)
	}
	if errors.Is(err, context.DeadlineExceeded) || grpcCode(err) == codes.DeadlineExceeded {
		return fmt.Sprintf("%v\nNothing is known of the outcome. --timeout allows more time; 'magnetar cluster health' says what is wrong.", err)
	}
	return err.Error()
}

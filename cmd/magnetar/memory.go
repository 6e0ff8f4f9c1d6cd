package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// memoryBudget is what --memory asked for, or else a quarter of the memory this
// process may use: its cgroup's limit where there is one, else the machine's.
func memoryBudget(asked int64) int64 {
	if asked > 0 {
		return asked
	}
	limit := machineMemory()
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && n < limit {
			limit = n
		}
	}
	return limit / 4
}

// machineMemory is MemTotal of /proc/meminfo, or 4 GiB where there is none.
func machineMemory() int64 {
	const unknown = 4 << 30
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return unknown
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) == 3 && fields[0] == "MemTotal:" {
			if kb, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				return kb << 10
			}
		}
	}
	return unknown
}

// Answers what containerd's own filters say: one JSON request a line, one JSON answer a line.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"

	"github.com/containerd/containerd/filters"
)

type request struct {
	Filters []string
	Fields  map[string]string
}

type answer struct {
	Refused bool
	Matches bool
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			panic(err)
		}
		f, err := filters.ParseAll(r.Filters...)
		if err != nil {
			out.Encode(answer{Refused: true})
			continue
		}
		out.Encode(answer{Matches: f.Match(filters.AdapterFunc(func(path []string) (string, bool) {
			v, ok := r.Fields[strings.Join(path, ".")]
			return v, ok
		}))})
	}
}

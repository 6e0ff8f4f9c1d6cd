// Package topicname is the one validator of names people choose: topics, their
// tenants and namespaces, subscriptions, producers and consumers.
//
// A topic is named persistent://TENANT/NAMESPACE/LOCAL, with -partition-N behind
// it for one partition. TENANT/NAMESPACE/LOCAL and LOCAL alone are short for it,
// the latter in public/default. The long form is what is printed and hashed.
package topicname

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/murmur3"
)

// ErrInvalid reports a name that cannot be used. Its text says which rule it
// breaks, for the person who typed it.
var ErrInvalid = errors.New("invalid name")

const (
	// DefaultTenant and DefaultNamespace are those of a topic named without.
	DefaultTenant    = "public"
	DefaultNamespace = "default"
	// Unpartitioned is the Partition of a Name that names no single partition.
	Unpartitioned = -1
	// MaxPartitions bounds the partitions of a topic.
	MaxPartitions = 1 << 16
	// MaxBytes bounds each part of a name.
	MaxBytes = 255

	scheme          = "persistent://"
	nonPersistent   = "non-persistent://"
	partitionSuffix = "-partition-"
)

// Name is a valid topic name. It is comparable. The zero Name is none.
type Name struct {
	Tenant    string
	Namespace string
	Local     string
	Partition int // from 0, or Unpartitioned
}

// Parse reads a topic name in its long or one of its short forms.
func Parse(s string) (Name, error) {
	if strings.HasPrefix(s, nonPersistent) {
		return Name{}, fmt.Errorf("topic %q: non-persistent topics are not supported: use %s: %w", s, scheme+strings.TrimPrefix(s, nonPersistent), ErrInvalid)
	}
	rest, long := strings.CutPrefix(s, scheme)
	if i := strings.Index(rest, "://"); i >= 0 {
		return Name{}, fmt.Errorf("topic %q: unknown kind %q, want %s: %w", s, rest[:i+3], scheme, ErrInvalid)
	}
	n := Name{Tenant: DefaultTenant, Namespace: DefaultNamespace, Partition: Unpartitioned}
	switch parts := strings.Split(rest, "/"); {
	case len(parts) == 1 && !long:
		n.Local = parts[0]
	case len(parts) == 3:
		n.Tenant, n.Namespace, n.Local = parts[0], parts[1], parts[2]
	default:
		return Name{}, fmt.Errorf("topic %q: want TOPIC, TENANT/NAMESPACE/TOPIC or %sTENANT/NAMESPACE/TOPIC: %w", s, scheme, ErrInvalid)
	}
	if i := strings.LastIndex(n.Local, partitionSuffix); i >= 0 {
		digits := n.Local[i+len(partitionSuffix):]
		p, err := strconv.Atoi(digits)
		if err != nil || p < 0 || p >= MaxPartitions || strconv.Itoa(p) != digits {
			return Name{}, fmt.Errorf("topic %q: %q is kept for partitions, %d at most, and %q is not the number of one: %w",
				s, partitionSuffix, MaxPartitions, digits, ErrInvalid)
		}
		n.Local, n.Partition = n.Local[:i], p
	}
	if strings.Contains(n.Local, partitionSuffix) {
		return Name{}, fmt.Errorf("topic %q: %q is kept for partitions: %w", s, partitionSuffix, ErrInvalid)
	}
	if err := errors.Join(ValidateTenant(n.Tenant), ValidateNamespace(n.Namespace), validate("topic", n.Local)); err != nil {
		return Name{}, err
	}
	return n, nil
}

// MustParse is Parse for names known to be valid; it panics on others.
func MustParse(s string) Name {
	n, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return n
}

// String is the long form.
func (n Name) String() string {
	s := scheme + n.Tenant + "/" + n.Namespace + "/" + n.Local
	if n.Partition >= 0 {
		s += partitionSuffix + strconv.Itoa(n.Partition)
	}
	return s
}

// Base is the topic that n is a partition of, or n.
func (n Name) Base() Name {
	n.Partition = Unpartitioned
	return n
}

// WithPartition is partition p of the topic; Unpartitioned gives its base.
func (n Name) WithPartition(p int) Name {
	n.Partition = p
	return n
}

// NamespaceName is TENANT/NAMESPACE.
func (n Name) NamespaceName() string { return n.Tenant + "/" + n.Namespace }

// Hash places the topic, each partition by itself, in a bundle of its
// namespace: Murmur3_32 of the long form, seed 0.
func (n Name) Hash() uint32 { return murmur3.StringSum32(n.String()) }

// KeyHash is the hash by which a message's key is routed to a partition:
// Murmur3_32, seed 0.
func KeyHash(key []byte) uint32 { return murmur3.Sum32(key) }

// ParseNamespace splits TENANT/NAMESPACE.
func ParseNamespace(s string) (tenant, namespace string, err error) {
	tenant, namespace, ok := strings.Cut(s, "/")
	if !ok {
		return "", "", fmt.Errorf("namespace %q: want TENANT/NAMESPACE: %w", s, ErrInvalid)
	}
	if err := errors.Join(ValidateTenant(tenant), ValidateNamespace(namespace)); err != nil {
		return "", "", err
	}
	return tenant, namespace, nil
}

// ValidateTenant checks the name of a tenant.
func ValidateTenant(s string) error { return validate("tenant", s) }

// ValidateNamespace checks a namespace's own name, without its tenant.
func ValidateNamespace(s string) error { return validate("namespace", s) }

// ValidateSubscription checks the name of a subscription.
func ValidateSubscription(s string) error { return validate("subscription", s) }

// ValidateProducer checks the name of a producer.
func ValidateProducer(s string) error { return validateText("producer", s) }

// ValidateConsumer checks the name of a consumer.
func ValidateConsumer(s string) error { return validateText("consumer", s) }

// validate checks a name that becomes a part of a topic's name or of a metadata
// key: letters and digits of ASCII and some signs, no '/'.
func validate(what, s string) error {
	if err := validateSize(what, s); err != nil {
		return err
	}
	if s == "." || s == ".." {
		return fmt.Errorf("%s %q: kept for file systems: %w", what, s, ErrInvalid)
	}
	for _, r := range s {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("-_.=:%~+@$", r):
		default:
			return fmt.Errorf("%s %q: %q is not allowed, only letters, digits and - _ . = : %% ~ + @ $: %w", what, s, r, ErrInvalid)
		}
	}
	return nil
}

// validateText checks a name that is only ever shown and compared.
func validateText(what, s string) error {
	if err := validateSize(what, s); err != nil {
		return err
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %q: not UTF-8: %w", what, s, ErrInvalid)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%s %q: %q is not printable: %w", what, s, r, ErrInvalid)
		}
	}
	return nil
}

func validateSize(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s without a name: %w", what, ErrInvalid)
	case len(s) > MaxBytes:
		return fmt.Errorf("%s %q…: %d bytes, at most %d: %w", what, s[:32], len(s), MaxBytes, ErrInvalid)
	}
	return nil
}

package main

import "github.com/spf13/cobra"

// commands lists all top-level commands, in the order help shows them.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.standaloneCommand(), a.metadataCommand(), a.bookieCommand(), a.brokerCommand(), a.discoveryCommand(),
		a.produceCommand(), a.consumeCommand(), a.benchCommand(),
		a.tenantCommand(), a.namespaceCommand(), a.topicCommand(), a.subscriptionCommand(), a.ledgerCommand(),
		a.clusterCommand(), a.configCommand(), a.versionCommand(), a.completionCommand(),
	}
}
